//! Every example manifest is one that the API server accepts.

use std::path::{Path, PathBuf};

fn manifests() -> Vec<PathBuf> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let dirs = std::fs::read_dir(examples).unwrap().map(|entry| entry.unwrap().path());
    dirs.map(|dir| dir.join("ebpfprogram.yaml")).filter(|path| path.is_file()).collect()
}

#[test]
fn every_example_is_valid() {
    let manifests = manifests();
    assert!(!manifests.is_empty());
    for path in manifests {
        let value = serde_yaml_ng::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        if let Err(violations) = skep_crds::validate::manifest(&value) {
            panic!("{}: {violations:?}", path.display());
        }
    }
}

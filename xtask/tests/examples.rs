//! Every example manifest is one that the API server accepts.

use std::path::Path;

#[test]
fn every_example_is_valid() -> anyhow::Result<()> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(examples)? {
        let path = entry?.path().join("ebpfprogram.yaml");
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        if let Err(violations) = skep_crds::validate::manifest(&serde_yaml_ng::from_str(&text)?) {
            panic!("{}: {violations:?}", path.display());
        }
        seen += 1;
    }
    assert_ne!(seen, 0);
    Ok(())
}

//! The hashes of checked-in specs, compared with the checked-in values.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::{Value, json};
use skep_crds::{EbpfProgramSpec, load_hash, revision_hash};

const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000001";

fn spec(file: &str) -> EbpfProgramSpec {
    let text = std::fs::read_to_string(format!("{}/tests/golden/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    // By way of JSON: YAML alone would want a tag for a union.
    serde_json::from_value(serde_yaml_ng::from_str(&text).unwrap()).unwrap()
}

fn changed(change: impl FnOnce(&mut Value)) -> EbpfProgramSpec {
    let mut value = serde_json::to_value(spec("full.yaml")).unwrap();
    change(&mut value);
    serde_json::from_value(value).unwrap()
}

#[test]
fn golden_hashes_stay() {
    let golden = std::fs::read_to_string(format!("{}/tests/golden/hashes.yaml", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let golden: Value = serde_yaml_ng::from_str(&golden).unwrap();
    let mut now = json!({});
    for file in [
        "minimal.yaml",
        "full.yaml",
        "netns.yaml",
        "edges.yaml",
        "functions.yaml",
        "cgroups.yaml",
        "hooks.yaml",
        "probes.yaml",
        "maps.yaml",
        "sections.yaml",
        "whole.yaml",
    ] {
        let spec = spec(file);
        let restart = Some("2024-01-01T00:00:00Z");
        now[file] = json!({
            "revision": revision_hash(&spec, DIGEST, None),
            "restarted": revision_hash(&spec, DIGEST, restart),
            "suspended": revision_hash(&EbpfProgramSpec { suspend: Some(true), ..spec.clone() }, DIGEST, None),
            "load": load_hash(&spec, DIGEST, None),
            "reloaded": load_hash(&spec, DIGEST, restart),
        });
    }
    assert_eq!(
        now, golden,
        "a hash changed. An upgrade of Skep may not change hashes: every program of every cluster would be loaded \
         anew. Change the code, never the golden file"
    );
}

#[test]
fn what_does_not_change_a_node_does_not_change_the_revision() {
    let before = revision_hash(&spec("full.yaml"), DIGEST, None);
    let changes: [fn(&mut Value); 5] = [
        |spec| spec["suspend"] = false.into(),
        |spec| spec["image"]["reference"] = "registry.example.com/other:v9".into(),
        |spec| spec["image"]["pullPolicy"] = "Always".into(),
        |spec| drop(spec["image"].as_object_mut().unwrap().remove("pullSecrets")),
        |spec| drop(spec.as_object_mut().unwrap().remove("nodeSelector")),
    ];
    for change in changes {
        assert_eq!(revision_hash(&changed(change), DIGEST, None), before);
    }
}

#[test]
fn what_changes_a_node_changes_the_revision_and_only_the_load_changes_the_load() {
    let spec = spec("full.yaml");
    let (revision, load) = (revision_hash(&spec, DIGEST, None), load_hash(&spec, DIGEST, None));
    let both: [fn(&mut Value); 1] = [|spec| spec["globals"]["sample_rate"] = 129.into()];
    let revision_only: [fn(&mut Value); 3] = [
        |spec| spec["suspend"] = true.into(),
        |spec| spec["programs"][0]["attach"][0]["xdp"]["mode"] = "Generic".into(),
        |spec| spec["maps"]["flows"]["onUpdate"] = "Keep".into(),
    ];
    for change in both {
        assert_ne!(revision_hash(&changed(change), DIGEST, None), revision);
        assert_ne!(load_hash(&changed(change), DIGEST, None), load);
    }
    for change in revision_only {
        assert_ne!(revision_hash(&changed(change), DIGEST, None), revision);
        assert_eq!(load_hash(&changed(change), DIGEST, None), load);
    }
    let other = DIGEST.replace('1', "2");
    assert_ne!(revision_hash(&spec, &other, None), revision);
    assert_ne!(load_hash(&spec, &other, None), load);
    assert_ne!(revision_hash(&spec, DIGEST, Some("x")), revision);
    assert_ne!(load_hash(&spec, DIGEST, Some("x")), load);
}

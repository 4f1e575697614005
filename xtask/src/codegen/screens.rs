//! What the plugin draws, as it draws example data.

use std::process::Command;

use anyhow::Result;

use crate::{repo, step};

/// `docs/screens.md` and `docs/graph.svg`.
pub fn files() -> Result<[(&'static str, String); 2]> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(repo::root()).args(["build", "--quiet", "--package", "kubectl-skep", "--example", "screens"]);
    step::run("screens, of example data", &mut cargo)?;
    let drawn = |what| {
        let mut command = Command::new(repo::target().join("debug/examples/screens"));
        // Nothing of this machine is to show.
        command.env_clear().arg(what);
        step::ask(&mut command).map(|text| text + "\n")
    };
    Ok([("docs/screens.md", drawn("page")?), ("docs/graph.svg", drawn("svg")?)])
}

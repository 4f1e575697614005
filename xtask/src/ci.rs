//! `cargo xtask ci`: what a change has to pass, cheapest first.

use std::process::Command;

use anyhow::Result;

use crate::setup::Setup;
use crate::{repo, step, test};

pub fn run() -> Result<()> {
    let cargo = |words: &[&str]| {
        let mut cargo = Command::new("cargo");
        cargo.current_dir(repo::root()).args(words);
        cargo
    };
    Setup::all().run()?;
    step::run("cargo fmt", &mut cargo(&["fmt", "--all", "--check"]))?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    step::run("cargo clippy", &mut cargo(&clippy))?;
    let mut doc = cargo(&["doc", "--workspace", "--no-deps"]);
    step::run("cargo doc", doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    step::run("codegen is current", &mut cargo(&["xtask", "codegen", "--check"]))?;
    // It looks at what other systems would need too, which no build here has fetched.
    step::run("cargo fetch", &mut cargo(&["fetch", "--locked"]))?;
    let deny = repo::tool("cargo-deny");
    let mut check = Command::new(deny);
    check.current_dir(repo::root()).args(["--offline", "check", "licenses", "bans"]);
    step::run("cargo deny", &mut check)?;
    test::Test::all().run()
}

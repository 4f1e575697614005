//! Completion scripts for shells.

use clap::CommandFactory;

use crate::args::{Cli, Completion};
use crate::error::Error;
use crate::output;

/// Prints the script.
pub fn run(completion: &Completion) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(completion.shell.generator(), &mut Cli::command(), "kubectl-skep", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}

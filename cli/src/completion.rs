//! Completion scripts for shells.

use clap::CommandFactory;

use crate::args::{Cli, Completion};
use crate::error::Error;
use crate::output;

/// Prints the script.
pub fn run(completion: &Completion) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(completion.shell.generator(), &mut Cli::command(), "kubectl-skep", &mut script);
    // Of a command with a hyphen, clap_complete 4.6 writes down where bash is in one way and looks for it in another:
    // nothing but the first word would be completed (https://github.com/clap-rs/clap/issues/6421).
    let script = String::from_utf8_lossy(&script).replace("kubectl__subcmd__skep", "kubectl__skep");
    output::print(&script)
}

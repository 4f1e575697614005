//! `cargo xtask image`: container images of the operator and the agent, without a daemon.

pub mod layout;

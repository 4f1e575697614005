//! The kubectl plugin: `kubectl skep get|why|maps|top|events|restart|suspend|resume|push`.
//!
//! Guarantees: it only reads, apart from minting a ten-minute token and from the commands that say otherwise; the user's own credential goes to the API server and
//! nowhere else; everything printed is rendered by a pure function of what was read and of the time.
//!
//! Two sources give the same [`view::Program`]s: the cluster ([`cluster`]), and one agent by its socket ([`socket`]).
//! Maps always come from agents ([`agent`]) and are decoded here ([`schema`], [`entries`]).
#![forbid(unsafe_code)]

pub mod age;
pub mod agent;
pub mod args;
pub mod change;
pub mod cluster;
pub mod columns;
pub mod completion;
pub mod connect;
pub mod deadline;
pub mod drain;
pub mod dump;
pub mod edit;
pub mod entries;
pub mod error;
pub mod events;
pub mod features;
pub mod follow;
pub mod get;
pub mod graph;
pub mod hint;
pub mod hist;
pub mod insns;
pub mod iterators;
pub mod live;
pub mod losses;
pub mod maps;
pub mod names;
pub mod number;
pub mod order;
pub mod output;
pub mod page;
pub mod printed;
pub mod prog;
pub mod push;
pub mod queue;
pub mod registry;
pub mod reports;
mod rows;
pub mod schema;
pub mod screen;
pub mod show;
pub mod socket;
pub mod source;
pub mod table;
pub mod tail;
pub mod top;
pub mod trial;
pub mod view;
pub mod watch;
pub mod why;

use args::{Cli, Command, MapsCommand, ProgCommand};
use change::What;
use error::Error;

/// Runs one command line.
pub async fn run(cli: &Cli) -> Result<(), Error> {
    match &cli.command {
        Command::Get(get) => get::run(&cli.global, get).await,
        Command::Why(why) => why::run(&cli.global, why).await,
        Command::Maps(maps) => match &maps.command {
            MapsCommand::Ls(ls) => maps::run(&cli.global, ls).await,
            MapsCommand::Dump(dump) => dump::run(&cli.global, dump).await,
            MapsCommand::Get(get) => edit::get(&cli.global, get).await,
            MapsCommand::Set(set) => edit::set(&cli.global, set).await,
            MapsCommand::Del(del) => edit::del(&cli.global, del).await,
            MapsCommand::Drain(drain) => drain::run(&cli.global, drain).await,
            MapsCommand::Put(put) => edit::put(&cli.global, put).await,
            MapsCommand::Watch(watch) => watch::changes(&cli.global, watch).await,
            MapsCommand::Top(top) => watch::top(&cli.global, top).await,
        },
        Command::Graph(graph) => graph::run(&cli.global, graph).await,
        Command::Hist(hist) => hist::run(&cli.global, hist).await,
        Command::Top(top) => top::run(&cli.global, top).await,
        Command::Prog(prog) => match &prog.command {
            ProgCommand::Ls(ls) => prog::ls(&cli.global, ls).await,
            ProgCommand::Show(show) => show::run(&cli.global, show).await,
            ProgCommand::Read(read) => iterators::run(&cli.global, read).await,
            ProgCommand::Insns(insns) => insns::run(&cli.global, insns).await,
            ProgCommand::Log(log) => prog::log(&cli.global, log).await,
            ProgCommand::Test(test) => trial::run(&cli.global, test).await,
            ProgCommand::Top(top) => top::run(&cli.global, top).await,
        },
        Command::Events(events) => tail::run(&cli.global, events).await,
        Command::Output(printed) => printed::run(&cli.global, printed).await,
        Command::Features(features) => features::run(&cli.global, features).await,
        Command::Restart(change) => change::run(&cli.global, change, What::Restart).await,
        Command::Suspend(change) => change::run(&cli.global, change, What::Suspend).await,
        Command::Resume(change) => change::run(&cli.global, change, What::Resume).await,
        Command::Push(push) => push::run(push).await,
        Command::Completion(completion) => completion::run(completion),
        Command::Version => output::print(&format!("kubectl-skep {}\n", env!("CARGO_PKG_VERSION"))),
    }
}

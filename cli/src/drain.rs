//! `maps drain`: what is taken out of a map. It is gone there: whatever arrived is printed, also when the rest does not.

use skep_proto::v1::DrainMapRequest;

use crate::agent::Agent;
use crate::args::{DumpFormat, Global, MapsDrain};
use crate::dump::{Contents, print, progress, receive};
use crate::edit::chosen;
use crate::entries::{Entries, unpack};
use crate::error::Error;
use crate::output;
use crate::source::{self, Access};

/// Runs the command.
pub async fn run(global: &Global, drain: &MapsDrain) -> Result<(), Error> {
    let node = chosen(global, &drain.nodes)?;
    let bar = progress();
    let asked = source::ask(global, Access::Write, node, Some(&drain.name), |agent, namespace| {
        let bar = bar.clone();
        async move {
            let request = DrainMapRequest {
                program: Some(agent.program(&namespace, &drain.name).await?),
                map: drain.map.clone(),
                decode: false,
                limit: drain.limit.unwrap_or(0),
            };
            let stream = agent.drain(request).await?;
            let mut taken: Option<Contents> = None;
            let ended = receive(&agent, stream, &bar, None, |schema, frame, _| {
                let part = |entries| Contents::new(agent.node.clone(), schema.clone(), entries, None);
                let entries = unpack(schema, frame)?;
                if drain.output == DumpFormat::Jsonl {
                    return bar.suspend(|| print(&[part(entries.collect())], drain.output, false));
                }
                taken.get_or_insert_with(|| part(Entries::default())).entries.extend(entries);
                Ok(())
            })
            .await;
            arrived(&agent, taken, ended.map(|(contents, _)| contents))
        }
    });
    // What nobody would see stays in the map.
    let asked = output::while_read(asked).await;
    bar.finish_and_clear();
    let mut answers = asked?;
    if drain.output != DumpFormat::Jsonl {
        answers.answers.iter_mut().for_each(Contents::sort);
        print(&answers.answers, drain.output, answers.several)?;
    }
    answers.complete()
}

/// An interrupted stream counts as far as it came; that it was interrupted is said.
fn arrived(agent: &Agent, taken: Option<Contents>, ended: Result<Contents, Error>) -> Result<Contents, Error> {
    match (taken, ended) {
        (Some(taken), Ok(_)) => Ok(taken),
        (None, ended) => ended,
        (Some(taken), Err(error)) => {
            output::note(format_args!("{}: what is printed was taken out; then: {error}", agent.node));
            Ok(taken)
        }
    }
}

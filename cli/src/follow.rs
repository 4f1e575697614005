//! The looks of a `WatchMap`, one after the other: what `maps watch`, `maps top` and `graph` are made of.

use std::time::Instant;

use skep_proto::v1::map_frame::Frame;
use skep_proto::v1::{Changes, WatchMapRequest};

use crate::agent::Agent;
use crate::entries::{Entry, pieces, unpack};
use crate::error::Error;
use crate::queue::Queue;
use crate::schema::Schema;

/// One entry of a look.
#[derive(Debug, PartialEq)]
pub struct Change<'a> {
    pub entry: Entry<'a>,
    /// What it was; zeroes for a new one.
    pub before: Entry<'a>,
    pub added: bool,
}

/// For a request.
pub fn millis(interval: std::time::Duration) -> u32 {
    u32::try_from(interval.as_millis()).unwrap_or(u32::MAX)
}

/// Hands on what comes, until it ends as it should; `say` is told what there is to be said.
pub async fn follow(
    agent: &Agent,
    request: WatchMapRequest,
    say: impl Fn(String),
    mut on: impl FnMut(&Schema, &Changes) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut stream = agent.watch(request).await?;
    let (mut schema, mut queue) = (None, Queue::default());
    // Nothing may change for a year.
    while let Some(message) = stream.next().await? {
        match message.frame {
            Some(Frame::Schema(message)) => {
                if schema.is_some() {
                    say(format!("{}: another map took its place; what follows is of that one", agent.node));
                }
                schema = Some(Schema::new(message)?);
            }
            Some(Frame::Changes(changes)) => {
                on(schema.as_ref().ok_or(Error::Schema("changes came before the description"))?, &changes)?;
            }
            Some(Frame::End(end)) if end.reason == "looks" => return Ok(()),
            Some(Frame::End(end)) => return Err(Error::Agent(format!("{}: {}", agent.node, end.reason))),
            Some(Frame::Raw(_) | Frame::Decoded(_) | Frame::Inner(_)) => {
                return Err(Error::Schema("entries, which nobody asked for"));
            }
            Some(Frame::Queued(queued)) => {
                queue.hear(queued.before);
                queue.note(&agent.node, Instant::now()).into_iter().for_each(&say);
            }
            None => {}
        }
    }
    Err(stream.cut())
}

/// The changed entries of a frame.
pub fn unpacked<'a>(schema: &Schema, frame: &'a Changes) -> Result<Vec<Change<'a>>, Error> {
    let Some(entries) = &frame.entries else { return Ok(Vec::new()) };
    let added = |index: usize| frame.added.iter().any(|at| *at as usize == index);
    let pairs = unpack(schema, entries)?.zip(pieces(schema, entries.count, &entries.keys, &frame.before)?);
    Ok(pairs.enumerate().map(|(index, (entry, before))| Change { entry, before, added: added(index) }).collect())
}

/// Since the look before; never 0, which nothing can be divided by.
pub fn seconds(frame: &Changes) -> f64 {
    (frame.elapsed_us as f64 / 1e6).max(1e-6)
}

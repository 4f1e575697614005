//! `events`: the records that programs write, as they come.

use std::time::Instant;

use serde::Serialize;
use serde_json::Value;
use skep_object::btf::decode::hex;
use skep_object::btf::desc::TypeDesc;
use skep_proto::v1::event_frame::Frame;
use skep_proto::v1::{EventBatch, TailEventsRequest};

use crate::agent::Agent;
use crate::args::{EventFormat, Events, Global};
use crate::error::Error;
use crate::losses::Losses;
use crate::output::{self, note};
use crate::schema::type_desc;
use crate::source::{self, Access};

/// A record; the shape of `-o json`.
#[derive(Debug, Serialize)]
struct Row<'a> {
    node: &'a str,
    event: Value,
}

/// Runs the command.
pub async fn run(global: &Global, events: &Events) -> Result<(), Error> {
    let node = events.node.as_deref();
    // One node is asked for no prefix.
    let several = global.socket.is_none() && node.is_none();
    let answers = source::ask(global, Access::Follow, node, Some(&events.name), |agent, namespace| async move {
        follow(&agent, &namespace, events, several).await
    })
    .await?;
    answers.complete()
}

async fn follow(agent: &Agent, namespace: &str, events: &Events, several: bool) -> Result<(), Error> {
    let request = TailEventsRequest {
        program: Some(agent.program(namespace, &events.name).await?),
        map: events.map.clone(),
        r#type: events.type_.clone().unwrap_or_default(),
        decode: false,
        limit: events.limit.unwrap_or(0),
        consume: events.consume,
        filter: events.filter.clone().unwrap_or_default(),
        one_in: events.one_in.unwrap_or(1),
        rate: events.rate.unwrap_or(0),
    };
    let mut losses = Losses::default();
    let ended = records(agent, request, events, several, &mut losses).await;
    losses.tell(&agent.node, Instant::now()).into_iter().for_each(note);
    ended
}

async fn records(
    agent: &Agent,
    request: TailEventsRequest,
    events: &Events,
    several: bool,
    losses: &mut Losses,
) -> Result<(), Error> {
    let mut stream = agent.events(request).await?;
    let mut desc = None;
    loop {
        let due = losses.due(Instant::now());
        // A record may come in a year.
        let next = tokio::select! {
            next = stream.next() => next?,
            () = until(due) => {
                losses.tell(&agent.node, Instant::now()).into_iter().for_each(note);
                continue;
            }
        };
        match next.ok_or_else(|| stream.cut())?.frame {
            Some(Frame::Schema(schema)) => desc = schema.r#type.as_ref().map(type_desc).transpose()?,
            Some(Frame::Raw(batch)) => {
                losses.add(batch.lost.unwrap_or_default());
                output::print(&render(&agent.node, desc.as_ref(), &batch, events.output, several)?)?;
            }
            Some(Frame::Decoded(_)) => return Err(Error::Schema("decoded records, which nobody asked for")),
            Some(Frame::End(end)) if end.reason == "limit" => return Ok(()),
            Some(Frame::End(end)) => return Err(Error::Agent(format!("{}: {}", agent.node, end.reason))),
            None => {}
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

fn render(
    node: &str,
    desc: Option<&TypeDesc>,
    batch: &EventBatch,
    format: EventFormat,
    several: bool,
) -> Result<String, Error> {
    let (mut text, mut at) = (String::new(), 0usize);
    for len in &batch.lengths {
        let end = at.saturating_add(*len as usize);
        let record = batch.data.get(at..end).ok_or(Error::Schema("its records are longer than they are"))?;
        at = end;
        let event = match (format, desc) {
            (EventFormat::Raw, _) | (_, None) => Value::from(hex(record)),
            (_, Some(desc)) => desc.decode_record(record),
        };
        let line = match (format, event) {
            (EventFormat::Json, event) => serde_json::to_string(&Row { node, event }).unwrap_or_default(),
            (_, Value::String(text)) => text,
            (_, event) => event.to_string(),
        };
        if several && format != EventFormat::Json {
            text.push_str(node);
            text.push(' ');
        }
        text.push_str(&line);
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_object::btf::desc::TypeKind;

    #[test]
    fn records_are_lines() {
        let desc = TypeDesc { kind: TypeKind::Uint, name: "u32".into(), size: 4 };
        let batch = EventBatch { lengths: vec![4, 4], data: vec![1, 0, 0, 0, 2, 0, 0, 0].into(), lost: None };
        let shown = |desc, format, several| render("n1", desc, &batch, format, several).unwrap();
        assert_eq!(shown(Some(&desc), EventFormat::Text, false), "1\n2\n");
        assert_eq!(shown(Some(&desc), EventFormat::Text, true), "n1 1\nn1 2\n");
        assert_eq!(
            shown(Some(&desc), EventFormat::Json, true),
            "{\"node\":\"n1\",\"event\":1}\n{\"node\":\"n1\",\"event\":2}\n"
        );
        assert_eq!(shown(None, EventFormat::Text, false), "0x01000000\n0x02000000\n");
        assert_eq!(shown(Some(&desc), EventFormat::Raw, false), "0x01000000\n0x02000000\n");
        let short = EventBatch { lengths: vec![9], data: vec![1].into(), lost: None };
        assert!(render("n1", None, &short, EventFormat::Text, false).is_err());
    }
}

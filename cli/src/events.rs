//! The Events of an EbpfProgram.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event as ApiEvent;

use crate::view::Event;

/// How many are shown.
const SHOWN: usize = 10;

/// The last few, the newest last.
pub fn last(events: Vec<ApiEvent>) -> Vec<Event> {
    let mut events: Vec<Event> = events.into_iter().map(event).collect();
    events.sort_by_key(|e| e.last);
    events.split_off(events.len().saturating_sub(SHOWN))
}

/// Both generations of the API leave their times in different places.
fn event(event: ApiEvent) -> Event {
    let series = event.series.as_ref();
    let last: Option<Timestamp> = series
        .and_then(|s| s.last_observed_time.as_ref().map(|t| t.0))
        .or_else(|| event.last_timestamp.as_ref().map(|t| t.0))
        .or_else(|| event.event_time.as_ref().map(|t| t.0))
        .or_else(|| event.metadata.creation_timestamp.as_ref().map(|t| t.0));
    Event {
        last,
        count: series.and_then(|s| s.count).or(event.count).unwrap_or(1),
        type_: event.type_.unwrap_or_default(),
        reason: event.reason.unwrap_or_default(),
        message: event.message.unwrap_or_default(),
    }
}

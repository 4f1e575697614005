//! All reports of the node, and the stream of their changes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use skep_crds::Reason;
use skep_proto::v1::{NodeEvent, Notice, ProgramReport, Snapshot, State, node_event::Event};
use tokio::sync::broadcast;

/// Events that a slow watcher may lag behind before it gets a snapshot again.
const BACKLOG: usize = 1024;
/// Notices that wait for somebody to watch; the oldest go first.
const WAITING: usize = 256;

/// Who watches gets everything: a snapshot, then each change in order.
#[derive(Debug)]
pub struct Reports {
    instance: String,
    state: Mutex<Inner>,
    events: broadcast::Sender<NodeEvent>,
}

#[derive(Debug, Default)]
struct Inner {
    sequence: u64,
    programs: BTreeMap<String, ProgramReport>,
    notices: VecDeque<Notice>,
}

impl Reports {
    /// `instance` is new with every start of the agent.
    pub fn new(instance: String) -> Self {
        Reports { instance, state: Mutex::default(), events: broadcast::channel(BACKLOG).0 }
    }
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Takes a report over; one that says nothing new is not an event.
    pub fn put(&self, report: ProgramReport) {
        let mut state = self.lock();
        if state.programs.get(&report.uid) == Some(&report) {
            return;
        }
        state.programs.insert(report.uid.clone(), report.clone());
        self.send(&mut state, Event::Program(report));
    }

    /// Something happened; said to who watches, or to the next one who does.
    pub fn notice(&self, notice: Notice) {
        tracing::info!(uid = notice.uid, reason = notice.reason, "{}", notice.message);
        let mut state = self.lock();
        if self.events.receiver_count() > 0 {
            return self.send(&mut state, Event::Notice(notice));
        }
        if state.notices.len() == WAITING {
            state.notices.pop_front();
        }
        state.notices.push_back(notice);
    }

    /// A program is being taken away.
    pub fn removing(&self, uid: &str, reason: Reason, message: String) {
        if let Some(mut report) = self.get(uid) {
            report.set_state(State::Removing);
            report.reason = reason.to_string();
            report.message = message;
            self.put(report);
        }
    }

    /// Nothing is left of a program.
    pub fn gone(&self, uid: &str) {
        let mut state = self.lock();
        state.programs.remove(uid);
        self.send(&mut state, Event::Gone(uid.to_owned()));
    }

    pub fn all(&self) -> Vec<ProgramReport> {
        self.lock().programs.values().cloned().collect()
    }

    pub fn get(&self, uid: &str) -> Option<ProgramReport> {
        self.lock().programs.get(uid).cloned()
    }

    /// The report of a program by name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<ProgramReport> {
        self.lock().programs.values().find(|p| p.namespace == namespace && p.name == name).cloned()
    }

    /// Whose function a kernel program of this node is, in words.
    pub fn owner(&self, program_id: u32) -> Option<String> {
        self.lock().programs.values().find_map(|report| {
            let function = report.functions.iter().find(|f| f.id == program_id)?;
            Some(format!("EbpfProgram {}/{} (function {})", report.namespace, report.name, function.name))
        })
    }

    /// A snapshot, and every change after it.
    pub fn watch(&self) -> (NodeEvent, broadcast::Receiver<NodeEvent>) {
        let mut state = self.lock();
        let receiver = self.events.subscribe();
        let notices = state.notices.drain(..).collect();
        let snapshot = Snapshot { programs: state.programs.values().cloned().collect(), notices };
        (self.event(state.sequence, Event::Snapshot(snapshot)), receiver)
    }

    /// An event that changes nothing.
    pub fn heartbeat(&self) -> NodeEvent {
        self.event(self.lock().sequence, Event::Heartbeat(skep_proto::v1::Heartbeat {}))
    }

    fn send(&self, state: &mut Inner, event: Event) {
        state.sequence += 1;
        // Nobody watching is fine.
        let _ = self.events.send(self.event(state.sequence, event));
    }
    fn event(&self, sequence: u64, event: Event) -> NodeEvent {
        NodeEvent { instance: self.instance.clone(), sequence, event: Some(event) }
    }
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(uid: &str, message: &str) -> ProgramReport {
        ProgramReport { uid: uid.into(), message: message.into(), ..ProgramReport::default() }
    }

    #[test]
    fn what_happened_while_nobody_watched_comes_with_the_snapshot() {
        let reports = Reports::new("i".into());
        let notice = |message: &str| Notice { message: message.into(), ..Notice::default() };
        reports.notice(notice("early"));
        let (first, mut events) = reports.watch();
        assert!(matches!(first.event, Some(Event::Snapshot(s)) if s.notices == [notice("early")]));
        reports.notice(notice("now"));
        assert!(matches!(events.try_recv().unwrap().event, Some(Event::Notice(n)) if n == notice("now")));
        assert!(matches!(reports.watch().0.event, Some(Event::Snapshot(s)) if s.notices.is_empty()));
    }

    #[test]
    fn a_watcher_sees_a_snapshot_and_then_each_change_once() {
        let reports = Reports::new("i".into());
        reports.put(report("a", "1"));
        let (first, mut events) = reports.watch();
        assert!(matches!(first.event, Some(Event::Snapshot(s)) if s.programs.len() == 1));
        reports.put(report("a", "1"));
        reports.put(report("a", "2"));
        reports.gone("a");
        let next = events.try_recv().unwrap();
        assert_eq!(next.sequence, first.sequence + 1);
        assert!(matches!(next.event, Some(Event::Program(p)) if p.message == "2"));
        assert!(matches!(events.try_recv().unwrap().event, Some(Event::Gone(uid)) if uid == "a"));
        assert!(events.try_recv().is_err());
    }
}

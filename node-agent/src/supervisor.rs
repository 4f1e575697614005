//! Which programs there are on this node, and an actor for each.
//!
//! **Guarantees.** An order is acknowledged when its record is safe on disk. An actor that dies by a defect is started
//! again. Pins of uids that nobody told of stay until a complete list says that they are not wanted.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use skep_crds::Reason;
use skep_image::Auth;
use skep_proto::v1::{ProgramReport, State};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::actor::{self, Order, Shared};
use crate::desired::{DesiredProgram, StoreError};
use crate::error::ProgramError;
use crate::images::blocking;

/// Orders that may wait for the supervisor.
const QUEUE: usize = 256;

/// What a supervisor is asked.
#[derive(Debug)]
enum Command {
    Apply { program: Box<DesiredProgram>, auth: Auth, done: oneshot::Sender<Result<(), ProgramError>> },
    Refuse { program: Box<DesiredProgram>, reason: Reason, message: String },
    Remove { uid: String, done: oneshot::Sender<bool> },
    Sync { keep: BTreeSet<String>, done: oneshot::Sender<Result<Vec<String>, ProgramError>> },
}

/// For those who give orders.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
}

/// The agent is stopping.
fn stopped<E>(_: E) -> ProgramError {
    ProgramError::Internal("the agent is stopping".into())
}

impl Handle {
    /// Makes a program wanted; returns when its record is safe.
    pub async fn apply(&self, program: DesiredProgram, auth: Auth) -> Result<(), ProgramError> {
        let (done, answer) = oneshot::channel();
        let command = Command::Apply { program: Box::new(program), auth, done };
        self.commands.send(command).await.map_err(stopped)?;
        answer.await.map_err(stopped)?
    }
    /// Reports that a newer manifest of this program cannot be used; what runs, runs on.
    pub async fn refuse(&self, program: DesiredProgram, reason: Reason, message: String) -> Result<(), ProgramError> {
        self.commands.send(Command::Refuse { program: Box::new(program), reason, message }).await.map_err(stopped)
    }
    /// Makes a program unwanted; true when nothing of it was there.
    pub async fn remove(&self, uid: String) -> Result<bool, ProgramError> {
        let (done, answer) = oneshot::channel();
        self.commands.send(Command::Remove { uid, done }).await.map_err(stopped)?;
        answer.await.map_err(stopped)
    }
    /// Removes every program that is not named; their uids are returned.
    pub async fn sync(&self, keep: BTreeSet<String>) -> Result<Vec<String>, ProgramError> {
        let (done, answer) = oneshot::channel();
        self.commands.send(Command::Sync { keep, done }).await.map_err(stopped)?;
        answer.await.map_err(stopped)?
    }
}

/// Of a program whose record cannot be read: whose it is says the name of the file alone.
fn unreadable(error: &StoreError) -> ProgramReport {
    let uid = match error {
        StoreError::Io { path, .. } | StoreError::Undecodable { path, .. } | StoreError::Locked { path } => {
            path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
        }
    };
    let message = format!("its record cannot be read, so that it stays as it is until it is applied again: {error}");
    let mut report = ProgramReport { uid, reason: Reason::Internal.to_string(), message, ..ProgramReport::default() };
    report.set_state(State::Failed);
    report
}

/// An actor, by what it is told.
#[derive(Debug)]
struct Told {
    orders: watch::Sender<Order>,
    task: tokio::task::Id,
}

impl Told {
    /// An actor that is told the same again, as after every restart of whoever tells, has nothing to do; its record is safe.
    fn is_told(&self, program: &DesiredProgram, auth: &Auth) -> bool {
        let order = self.orders.borrow();
        order.refused.is_none() && order.auth == *auth && order.program.as_ref() == Some(program)
    }
}

/// Owns the actors.
#[derive(Debug)]
pub struct Supervisor {
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    orders: HashMap<String, Told>,
    actors: JoinSet<String>,
    /// Which uid a task is for, by task id: a task that panicked says nothing else.
    tasks: HashMap<tokio::task::Id, String>,
}

impl Supervisor {
    /// Starts with what the store holds: programs are back before anybody calls.
    pub fn new(shared: Arc<Shared>) -> Result<(Self, Handle), StoreError> {
        let (programs, broken) = shared.store.load()?;
        for error in &broken {
            tracing::error!(%error, "a desired file cannot be read; the program it stands for is left as it is");
            shared.reports.put(unreadable(error));
        }
        let (sender, commands) = mpsc::channel(QUEUE);
        let mut supervisor =
            Supervisor { shared, commands, orders: HashMap::new(), actors: JoinSet::new(), tasks: HashMap::new() };
        for program in programs {
            let uid = program.uid.clone();
            supervisor.order(&uid, Order { program: Some(program), auth: Auth::Anonymous, refused: None });
        }
        Ok((supervisor, Handle { commands: sender }))
    }

    /// Serves until cancelled; programs stay as they are.
    pub async fn run(mut self, cancel: CancellationToken) {
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                command = self.commands.recv() => match command {
                    Some(command) => self.handle(command).await,
                    None => break,
                },
                Some(ended) = self.actors.join_next_with_id() => self.ended(ended),
            }
        }
        // Dropping the orders ends the actors after the pass they are in.
        self.orders.clear();
        while self.actors.join_next().await.is_some() {}
    }

    async fn handle(&mut self, command: Command) {
        match command {
            Command::Apply { program, auth, done } => {
                let result = self.apply(*program, auth).await;
                let _ = done.send(result);
            }
            Command::Refuse { program, reason, message } => self.refuse(*program, reason, message),
            Command::Remove { uid, done } => {
                let known = self.orders.contains_key(&uid) || self.has_pins(&uid).await;
                if known {
                    self.order(&uid, Order { program: None, auth: Auth::Anonymous, refused: None });
                }
                let _ = done.send(!known);
            }
            Command::Sync { keep, done } => {
                let result = self.sync(&keep).await;
                let _ = done.send(result);
            }
        }
    }

    async fn apply(&mut self, mut program: DesiredProgram, auth: Auth) -> Result<(), ProgramError> {
        let before = self.orders.get(&program.uid).and_then(|told| told.orders.borrow().program.clone());
        if let Some(before) = before {
            let running = self.shared.reports.get(&program.uid).map(|report| report.running_revision);
            program = before.succeeded_by(program, running.as_deref());
        }
        if self.orders.get(&program.uid).is_some_and(|told| told.is_told(&program, &auth)) {
            return Ok(());
        }
        let (shared, record) = (self.shared.clone(), program.clone());
        blocking(move || shared.store.put(&record)).await??;
        let uid = program.uid.clone();
        self.order(&uid, Order { program: Some(program), auth, refused: None });
        Ok(())
    }

    fn refuse(&mut self, program: DesiredProgram, reason: Reason, message: String) {
        if let Some(told) = self.orders.get(&program.uid).filter(|told| told.orders.borrow().program.is_some()) {
            told.orders.send_modify(|order| order.refused = Some((reason, message)));
            return;
        }
        let mut report = ProgramReport {
            uid: program.uid,
            namespace: program.namespace,
            name: program.name,
            reason: reason.to_string(),
            message,
            ..ProgramReport::default()
        };
        report.set_state(State::Failed);
        self.shared.reports.put(report);
    }

    async fn sync(&mut self, keep: &BTreeSet<String>) -> Result<Vec<String>, ProgramError> {
        let kernel = self.shared.kernel.clone();
        let pinned = blocking(move || kernel.programs()).await??;
        let all: BTreeSet<String> = self.orders.keys().cloned().chain(pinned).collect();
        let unwanted: Vec<String> = all.into_iter().filter(|uid| !keep.contains(uid)).collect();
        // One that goes already is not hurried: its next try comes when the backoff says so.
        let goes = |uid: &String| self.orders.get(uid).is_some_and(|told| told.orders.borrow().program.is_none());
        let staying: Vec<&String> = unwanted.iter().filter(|uid| !goes(uid)).collect();
        for uid in staying {
            self.order(uid, Order { program: None, auth: Auth::Anonymous, refused: None });
        }
        // A report of a refused manifest has no program behind it, whose end would take it away.
        for report in self.shared.reports.all() {
            if !keep.contains(&report.uid) && !self.orders.contains_key(&report.uid) {
                self.shared.reports.gone(&report.uid);
            }
        }
        Ok(unwanted)
    }

    async fn has_pins(&self, uid: &str) -> bool {
        let (kernel, uid) = (self.shared.kernel.clone(), uid.to_owned());
        let pinned = blocking(move || kernel.programs()).await;
        matches!(pinned, Ok(Ok(uids)) if uids.contains(&uid))
    }

    /// Tells the actor, or starts one.
    fn order(&mut self, uid: &str, order: Order) {
        if let Some(told) = self.orders.get(uid)
            && told.orders.receiver_count() > 0
        {
            told.orders.send_replace(order);
            return;
        }
        let (sender, receiver) = watch::channel(order);
        let (shared, owned) = (self.shared.clone(), uid.to_owned());
        let task = self.actors.spawn(async move {
            actor::run(shared, owned.clone(), receiver).await;
            owned
        });
        self.tasks.insert(task.id(), uid.to_owned());
        self.orders.insert(uid.to_owned(), Told { orders: sender, task: task.id() });
    }

    fn ended(&mut self, ended: Result<(tokio::task::Id, String), tokio::task::JoinError>) {
        let (id, panicked) = match &ended {
            Ok((id, _)) => (*id, false),
            Err(e) => (e.id(), true),
        };
        let Some(uid) = self.tasks.remove(&id) else { return };
        // Another may have been started before this one's end was seen.
        if self.orders.get(&uid).is_none_or(|told| told.task != id) {
            return;
        }
        let Some(last) = self.orders.remove(&uid).map(|told| told.orders.borrow().clone()) else { return };
        if panicked {
            tracing::error!(uid, "a program's task ended by a defect; it is started again");
            self.order(&uid, last);
        } else if last.program.is_some() {
            // It was removed, and applied again before its end was seen.
            self.order(&uid, last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::Checks;
    use crate::desired::Store;
    use crate::fake::Fake;
    use crate::images::Images;
    use crate::neighbours::Neighbours;
    use crate::reports::Reports;
    use crate::watches::Watches;
    use skep_image::{Cache, Registry, RegistryConfig};
    use tokio::sync::Semaphore;

    /// A program that is wanted again in the moment in which its actor ended has one actor, which hears of orders.
    #[tokio::test]
    async fn an_end_that_is_seen_late_takes_nothing_from_who_came_after() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let places = Arc::new(Semaphore::new(4));
        let (registry, cache) = (Registry::new(&RegistryConfig::default()).unwrap(), Cache::open(dir.path()).unwrap());
        let (_view, view) = watch::channel(Arc::default());
        let (_resyncing, resyncs) = watch::channel(0);
        let shared = Arc::new(Shared {
            features: crate::features::Features::default(),
            kernel: Arc::new(Fake::default()),
            images: Images::new(registry, cache, u64::MAX, places.clone()),
            reports: Reports::new("test".into()),
            neighbours: Neighbours::default(),
            store: Store::open(dir.path()).unwrap(),
            view,
            places,
            watches: Watches::default(),
            checks: Checks::default(),
            resyncs,
        });
        let (mut supervisor, _handle) = Supervisor::new(shared).unwrap();
        let order = |program| Order { program, auth: Auth::Anonymous, refused: None };
        supervisor.order("u", order(None));
        while supervisor.orders["u"].orders.receiver_count() > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        // Not joined yet.
        let again = DesiredProgram { uid: "u".into(), name: "p".into(), ..DesiredProgram::default() };
        supervisor.order("u", order(Some(again)));
        let first = supervisor.actors.join_next_with_id().await.unwrap();
        supervisor.ended(first);
        assert_eq!(supervisor.actors.len(), 1);
        assert_eq!(supervisor.orders["u"].orders.receiver_count(), 1, "it would hear of the next order");
    }
}

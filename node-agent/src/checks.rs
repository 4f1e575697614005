//! The look at all programs that nobody asked for: what was left of each is compared with what there is, every 30 s, and
//! when the links of a network namespace changed.
//!
//! **Guarantees.** One look for the whole node, however many programs there are; it changes nothing, and wakes only those
//! of which something differs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use skep_kernel::seam::Observed;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::actor::Shared;
use crate::images::blocking;
use crate::watches::Stir;

/// How often it is done when nothing tells of a change.
pub const EVERY: Duration = Duration::from_secs(30);
/// How long after a sign of drift; who takes one thing away takes several.
pub const SETTLE: Duration = Duration::from_millis(200);

/// By uid.
type Left = HashMap<String, (Arc<Observed>, Arc<Stir>)>;

/// What the last passes left.
#[derive(Debug, Default)]
pub struct Checks {
    left: Mutex<Left>,
}

impl Checks {
    /// What a pass left, and whom to wake when it is no more.
    pub fn put(&self, uid: &str, seen: &Arc<Observed>, stir: &Arc<Stir>) {
        self.lock().insert(uid.to_owned(), (seen.clone(), stir.clone()));
    }

    /// Nothing is expected of this program any more.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks until cancelled. `changes` counts what is known to have changed somewhere.
pub async fn run(shared: Arc<Shared>, mut changes: watch::Receiver<u64>, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
            changed = changes.changed() => {
                if changed.is_err() {
                    return cancel.cancelled().await;
                }
                tokio::time::sleep(SETTLE).await;
                changes.borrow_and_update();
            }
        }
        let looking = shared.clone();
        if let Err(error) = blocking(move || look(&looking)).await {
            tracing::warn!(%error, "looking for drift");
        }
    }
}

/// One look. Blocks.
fn look(shared: &Shared) {
    let left: Vec<_> = shared.checks.lock().iter().map(|(uid, left)| (uid.clone(), left.clone())).collect();
    for (uid, (seen, stir)) in left {
        // What cannot be read is for the program's own pass to say.
        if shared.kernel.has_changed(&uid, &seen).unwrap_or(true) {
            stir.pins.notify_one();
        }
    }
}

//! The end of a program on this node: its record, its links, its pins, and then what the kernel frees when it comes to it.
//!
//! **Guarantees.** Idempotent. It ends, whoever holds what: for ten seconds it waits until nothing of the program is left
//! in the kernel; what is left then is said, with its holders as far as they can be known, and watched until it goes.

use std::sync::Arc;
use std::time::Duration;

use skep_crds::Reason;
use skep_kernel::remains::held_by;
use skep_kernel::seam::{Observed, Remain};
use skep_proto::v1::Notice;

use crate::actor::Shared;
use crate::error::ProgramError;
use crate::images::blocking;
use crate::pass::{PASS, patiently};

/// How long the kernel may take. A grace period is milliseconds; the detaching of a tracepoint takes 70 ms.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked meanwhile, and afterwards.
const SOON: Duration = Duration::from_millis(50);
const LATER: Duration = Duration::from_secs(10);

/// Removes a program, and waits for the kernel.
pub async fn remove(shared: &Arc<Shared>, uid: &str) -> Result<(), ProgramError> {
    shared.reports.removing(uid, Reason::Progressing, "being removed".into());
    let late = |error: ProgramError| shared.reports.removing(uid, error.reason(), format!("being removed; {error}"));
    let before = patiently("taking it away", PASS, late, take_away(shared, uid)).await?;
    // Whoever is attached to its functions lets go.
    shared.neighbours.changed();
    let mut waited = Duration::ZERO;
    let mut left = remains(shared, &before).await?;
    while !left.is_empty() && waited < PATIENCE {
        tokio::time::sleep(SOON).await;
        waited += SOON;
        left = remains(shared, &before).await?;
    }
    if left.is_empty() {
        return Ok(());
    }
    let held = blocking(move || held_by(&left)).await?;
    let message = format!("removed, but for what others hold: {}", held.join("; "));
    shared.reports.notice(Notice { uid: uid.to_owned(), warning: true, reason: Reason::Timeout.to_string(), message });
    tokio::spawn(watch(shared.clone(), uid.to_owned(), before));
    Ok(())
}

/// Takes everything away that is the program's; what there was.
async fn take_away(shared: &Arc<Shared>, uid: &str) -> Result<Observed, ProgramError> {
    let _place = shared.places.acquire().await.map_err(|e| ProgramError::Internal(e.to_string()))?;
    let (shared, uid) = (shared.clone(), uid.to_owned());
    blocking(move || {
        // First the record: a crash after it leaves pins of an unknown uid, which the next Sync removes.
        shared.store.remove(&uid).map_err(|e| ProgramError::Internal(e.to_string()))?;
        let before = shared.kernel.observe(&uid)?;
        shared.kernel.remove_program(&uid)?;
        Ok(before)
    })
    .await?
}

async fn remains(shared: &Arc<Shared>, before: &Observed) -> Result<Vec<Remain>, ProgramError> {
    let (shared, before) = (shared.clone(), before.clone());
    blocking(move || shared.kernel.remains(&before)).await
}

/// Says in the log when the last of it went.
async fn watch(shared: Arc<Shared>, uid: String, before: Observed) {
    loop {
        tokio::time::sleep(LATER).await;
        match remains(&shared, &before).await {
            Ok(left) if left.is_empty() => return tracing::info!(uid, "what others held of a removed program is gone"),
            Ok(_) => {}
            Err(error) => return tracing::warn!(uid, %error, "what others hold is not watched any more"),
        }
    }
}

//! Long work for people, such as reading a map of a million entries, on a thread of its own.
//!
//! **Guarantees.** Where several do such work, it yields: programs, lookups and whatever else runs on the node come first, so
//! that many who read large maps hold up nobody. The thread ends with the work.

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::error::ProgramError;

/// As nice(1) counts: a tenth of the processor that others want too.
const NICENESS: i32 = 10;
/// The longest that such work runs while others wait: a lookup waits for it once on the way in, and what comes after.
const SLICE_NS: u64 = 200_000;

/// Runs work that blocks, `nicely` or as others do; a panic in it is an error, not the agent's end.
pub async fn apart<T: Send + 'static>(
    nicely: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ProgramError> {
    let (sender, done) = oneshot::channel();
    let runtime = Handle::current();
    let run = move || {
        let _runtime = runtime.enter();
        // Of this thread alone. Where it may not be changed, it is as urgent as anything.
        let own = rustix::process::getpriority_process(None).unwrap_or(0);
        let _nice = nicely.then(|| skep_kernel::cpus::yielding(NICENESS.max(own), SLICE_NS));
        // A panic drops the sender.
        let _nobody = sender.send(work());
    };
    let thread = std::thread::Builder::new().name("apart".into()).spawn(run);
    thread.map_err(|e| ProgramError::Internal(format!("no thread can be made for it: {e}")))?;
    done.await.map_err(|_| ProgramError::Internal("it panicked; the agent's log says where".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::blocking;

    #[tokio::test]
    async fn it_yields_and_others_do_not() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let before = niceness();
        assert_eq!(apart(true, niceness).await.unwrap(), NICENESS.max(before));
        assert_eq!(apart(false, niceness).await.unwrap(), before);
        assert_eq!((niceness(), blocking(niceness).await.unwrap()), (before, before));
        assert!(apart(true, || panic!("as asked")).await.is_err());
    }
}

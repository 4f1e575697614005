//! The readers of ring buffers and perf event arrays: one for each map, for any number of clients.
//!
//! **Guarantees.** Every client gets every record that is written after it came, in order, or is told how many it did not
//! get: whoever reads too slowly loses by itself, and holds up nobody. A map is read as long as somebody wants its
//! records, and not longer.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::bytes::Bytes;
use skep_kernel::events::EventReader;
use tokio::sync::mpsc;

/// Bytes of a batch, and batches that wait for a client.
const BATCH: usize = 256 << 10;
const QUEUE: usize = 16;
/// How long a reader sleeps at most that is not woken.
const PATIENCE: Duration = Duration::from_millis(100);

/// Records that were read together.
#[derive(Debug, Default)]
pub struct Batch {
    /// Bytes of each.
    pub lengths: Vec<u32>,
    pub data: Bytes,
    /// How many the kernel lost before them.
    pub lost: u64,
}

/// What a client gets.
#[derive(Debug)]
pub struct Subscription {
    pub batches: mpsc::Receiver<Arc<Batch>>,
    missed: Arc<AtomicU64>,
}

impl Subscription {
    /// Records that did not fit into the client's queue since this was asked last.
    pub fn missed(&self) -> u64 {
        self.missed.swap(0, Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Client {
    queue: mpsc::Sender<Arc<Batch>>,
    missed: Arc<AtomicU64>,
}

/// All readers of the node.
#[derive(Debug, Default)]
pub struct Readers {
    /// Clients by the map's id.
    clients: Mutex<HashMap<u32, Vec<Client>>>,
}

impl Readers {
    /// Whether the map is read already.
    pub fn reads(&self, map: u32) -> bool {
        self.lock().contains_key(&map)
    }

    /// The records of a map from now on; `open` makes its reader if it has none. Blocks.
    pub fn subscribe(
        self: &Arc<Self>,
        map: u32,
        open: impl FnOnce() -> io::Result<EventReader>,
    ) -> io::Result<Subscription> {
        let (queue, batches) = mpsc::channel(QUEUE);
        let missed = Arc::new(AtomicU64::new(0));
        let client = Client { queue, missed: missed.clone() };
        let mut clients = self.lock();
        match clients.get_mut(&map) {
            Some(all) => all.push(client),
            None => {
                let (reader, readers) = (open()?, self.clone());
                let name = format!("events {map}");
                std::thread::Builder::new().name(name).spawn(move || readers.read(map, reader))?;
                clients.insert(map, vec![client]);
            }
        }
        Ok(Subscription { batches, missed })
    }

    /// As long as there are clients.
    fn read(&self, map: u32, mut reader: EventReader) {
        loop {
            let records = match reader.take(BATCH) {
                Ok(records) => records,
                Err(error) => {
                    tracing::warn!(map, %error, "reading events");
                    self.lock().remove(&map);
                    return;
                }
            };
            let empty = records.is_empty();
            let batch = (!empty)
                .then(|| Arc::new(Batch { lengths: records.lengths, data: records.data.into(), lost: records.lost }));
            if !self.hand_out(map, batch.as_ref()) {
                return;
            }
            if empty && let Err(error) = reader.wait(PATIENCE) {
                tracing::warn!(map, %error, "waiting for events");
                std::thread::sleep(PATIENCE);
            }
        }
    }

    /// False when nobody is left.
    fn hand_out(&self, map: u32, batch: Option<&Arc<Batch>>) -> bool {
        let mut clients = self.lock();
        let Some(all) = clients.get_mut(&map) else { return false };
        all.retain(|client| match batch {
            None => !client.queue.is_closed(),
            Some(batch) => match client.queue.try_send(batch.clone()) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Closed(_)) => false,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    // What the kernel lost is missing here too.
                    client.missed.fetch_add(batch.lengths.len() as u64 + batch.lost, Ordering::Relaxed);
                    true
                }
            },
        });
        let some = !all.is_empty();
        if !some {
            clients.remove(&map);
        }
        some
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Vec<Client>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

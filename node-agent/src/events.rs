//! The readers of ring buffers and perf event arrays: one for each map, for any number of clients.
//!
//! **Guarantees.** Every client gets every record that is written after it came, in order, or is told how many it did not
//! get: whoever reads too slowly loses by itself, and holds up nobody. A map is read as long as somebody wants its
//! records, and not longer.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::bytes::Bytes;
use skep_kernel::events::EventReader;
use tokio::sync::mpsc;

/// Bytes of a batch, and bytes that wait for a client. A batch may be a single record, so that batches are not counted.
const BATCH: usize = 256 << 10;
const WAITING: usize = 2 << 20;
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

impl Batch {
    /// What it costs to keep.
    fn cost(&self) -> usize {
        size_of::<Self>() + size_of_val(self.lengths.as_slice()) + self.data.len()
    }
}

/// What a client gets.
#[derive(Debug)]
pub struct Subscription {
    batches: mpsc::UnboundedReceiver<Arc<Batch>>,
    waiting: Arc<AtomicUsize>,
    missed: Arc<AtomicU64>,
}

impl Subscription {
    /// The next records; none when the map cannot be read any more.
    pub async fn next(&mut self) -> Option<Arc<Batch>> {
        let batch = self.batches.recv().await?;
        self.waiting.fetch_sub(batch.cost(), Ordering::Relaxed);
        Some(batch)
    }

    /// Records that did not fit into the client's queue since this was asked last.
    pub fn missed(&self) -> u64 {
        self.missed.swap(0, Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Client {
    queue: mpsc::UnboundedSender<Arc<Batch>>,
    /// Bytes in the queue, by which it is bounded.
    waiting: Arc<AtomicUsize>,
    missed: Arc<AtomicU64>,
}

impl Client {
    /// False when it is gone.
    fn give(&self, batch: &Arc<Batch>) -> bool {
        let cost = batch.cost();
        if self.waiting.load(Ordering::Relaxed) + cost > WAITING {
            // What the kernel lost is missing here too.
            self.missed.fetch_add(batch.lengths.len() as u64 + batch.lost, Ordering::Relaxed);
            return !self.queue.is_closed();
        }
        self.waiting.fetch_add(cost, Ordering::Relaxed);
        self.queue.send(batch.clone()).is_ok()
    }
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
        let (queue, batches) = mpsc::unbounded_channel();
        let (missed, waiting) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicUsize::new(0)));
        let client = Client { queue, waiting: waiting.clone(), missed: missed.clone() };
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
        Ok(Subscription { batches, waiting, missed })
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
            Some(batch) => client.give(batch),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> (Client, Subscription) {
        let (queue, batches) = mpsc::unbounded_channel();
        let (missed, waiting) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicUsize::new(0)));
        let client = Client { queue, waiting: waiting.clone(), missed: missed.clone() };
        (client, Subscription { batches, waiting, missed })
    }

    fn batch(records: usize, bytes: usize) -> Arc<Batch> {
        let lengths = vec![bytes as u32; records];
        Arc::new(Batch { lengths, data: vec![0; records * bytes].into(), lost: 0 })
    }

    /// Records that come one by one are as few bytes as those that come together.
    #[tokio::test]
    async fn a_queue_is_bounded_by_its_bytes_and_what_it_cannot_take_is_counted() {
        let (client, mut subscription) = client();
        let single = batch(1, 24);
        for _ in 0..1000 {
            assert!(client.give(&single));
        }
        assert_eq!(subscription.missed(), 0);
        let large = batch(4096, 64);
        let mut given = 1000;
        while client.waiting.load(Ordering::Relaxed) + large.cost() <= WAITING {
            assert!(client.give(&large));
            given += 4096;
        }
        assert!(client.give(&large) && client.give(&large));
        assert_eq!((subscription.missed(), subscription.missed()), (2 * 4096, 0));
        let mut taken = 0;
        while subscription.waiting.load(Ordering::Relaxed) > 0 {
            taken += subscription.next().await.unwrap().lengths.len();
        }
        assert_eq!(taken, given);
        assert!(client.give(&large), "there is room again");
        drop(subscription);
        assert!(!client.give(&single) && !client.give(&large));
    }
}

//! Objects by digest: from memory, from the cache on disk, else from the registry, each digest once at a time. Reading
//! and parsing take one of the node's places for blocking work; waiting for a registry takes none.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skep_image::{Auth, Bytecode, Cache, Digest, ImageError, Registry};
use skep_object::Object;
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

use crate::error::ProgramError;

/// How long a pull may take.
const PULL: Duration = Duration::from_secs(120);

type Slot = Arc<OnceCell<Arc<Object>>>;

/// The node's objects.
#[derive(Debug)]
pub struct Images {
    registry: Registry,
    cache: Arc<Cache>,
    /// Bytes that the cache may have on disk before unwanted images go.
    max_cache: u64,
    /// Places for blocking work: after a reboot every program wants its image at once.
    places: Arc<Semaphore>,
    /// Parsed objects that are in use or being fetched.
    objects: Mutex<HashMap<Digest, Slot>>,
}

impl Images {
    pub fn new(registry: Registry, cache: Cache, max_cache: u64, places: Arc<Semaphore>) -> Self {
        Images { registry, cache: Arc::new(cache), max_cache, places, objects: Mutex::new(HashMap::new()) }
    }
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Asks the registry whether the image is there for these credentials, whatever is in the cache.
    pub async fn check(&self, reference: &str, digest: &str, auth: &Auth) -> Result<(), ProgramError> {
        Ok(self.registry.check(reference, &parsed(digest)?, auth).await?)
    }

    /// The object of an image. `pull` false: only what is on the node already.
    pub async fn object(
        &self,
        reference: &str,
        digest: &str,
        auth: &Auth,
        pull: bool,
    ) -> Result<Arc<Object>, ProgramError> {
        let digest = parsed(digest)?;
        let slot = {
            let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
            // What nobody else holds may go.
            objects.retain(|d, slot| *d == digest || Arc::strong_count(slot) > 1 || in_use(slot));
            objects.entry(digest.clone()).or_default().clone()
        };
        slot.get_or_try_init(|| self.fetch(reference, &digest, auth, pull)).await.cloned()
    }

    /// Whether the cache on disk is over its bound. Blocks.
    pub fn is_over(&self) -> Result<bool, ImageError> {
        Ok(self.cache.size()? > self.max_cache)
    }

    /// Keeps the cache on disk within its bound, and in any case what is wanted. Blocks.
    pub fn trim(&self, wanted: &HashSet<Digest>) -> Result<Vec<Digest>, ImageError> {
        self.cache.trim(wanted, self.max_cache)
    }

    async fn fetch(
        &self,
        reference: &str,
        digest: &Digest,
        auth: &Auth,
        pull: bool,
    ) -> Result<Arc<Object>, ProgramError> {
        let mut place = self.place().await?;
        let bytecode = match self.cached(digest).await? {
            Some(bytecode) => bytecode,
            None if !pull => {
                return Err(ImageError::NotCached { reference: reference.to_owned() }.into());
            }
            None => {
                drop(place);
                let pulled = tokio::time::timeout(PULL, self.registry.pull(reference, digest, auth)).await;
                let bytecode = pulled.map_err(|_| ProgramError::Timeout {
                    what: format!("pulling {reference}"),
                    seconds: PULL.as_secs(),
                })??;
                place = self.place().await?;
                self.store(bytecode).await?
            }
        };
        let object = blocking(move || Object::parse(bytecode.object).map(Arc::new)).await?;
        drop(place);
        object.map_err(ProgramError::from)
    }

    async fn place(&self) -> Result<SemaphorePermit<'_>, ProgramError> {
        self.places.acquire().await.map_err(|e| ProgramError::Internal(e.to_string()))
    }

    async fn cached(&self, digest: &Digest) -> Result<Option<Bytecode>, ProgramError> {
        let (cache, digest) = (self.cache.clone(), digest.clone());
        match blocking(move || cache.get(&digest)).await? {
            Ok(found) => Ok(found),
            // A damaged entry was dropped: it is pulled again.
            Err(e) => {
                tracing::warn!(error = %e, "image cache");
                Ok(None)
            }
        }
    }

    async fn store(&self, bytecode: Bytecode) -> Result<Bytecode, ProgramError> {
        let cache = self.cache.clone();
        blocking(move || {
            // A full disk must not keep a program from running.
            if let Err(e) = cache.put(&bytecode) {
                tracing::warn!(error = %e, "image cache");
            }
            bytecode
        })
        .await
    }
}

fn parsed(digest: &str) -> Result<Digest, ProgramError> {
    digest.parse().map_err(|e| ProgramError::Internal(format!("desired digest: {e}")))
}

fn in_use(slot: &Slot) -> bool {
    slot.get().is_some_and(|object| Arc::strong_count(object) > 1)
}

/// Runs blocking work off the runtime's threads; a panic in it is an error of this program, not the agent's end.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ProgramError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| ProgramError::Internal(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_image_is_read_without_a_place() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let places = Arc::new(Semaphore::new(1));
        let registry = Registry::new(&skep_image::RegistryConfig::default()).unwrap();
        let images = Images::new(registry, Cache::open(dir.path()).unwrap(), u64::MAX, places.clone());
        let digest = format!("sha256:{}", "0".repeat(64));
        let taken = places.acquire().await.unwrap();
        let mut asked = std::pin::pin!(images.object("r.example/x", &digest, &Auth::Anonymous, false));
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut asked).await.is_err());
        drop(taken);
        assert_eq!(asked.await.unwrap_err().reason().to_string(), "ImageNotFound");
        assert_eq!(places.available_permits(), 1);
    }
}

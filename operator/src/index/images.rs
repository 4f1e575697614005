//! When images are asked for, and what follows from the answers.

use std::time::{Duration, Instant};

use skep_crds::Reason;

use super::{Index, Key, Note};
use crate::image::{Problem, Request, Resolution, backoff};
use crate::rollup::Image;

/// When Secrets are read again that are missing, or whose credentials a registry refuses: after 10 s, later after 2 minutes.
fn credentials_wait(failures: u32) -> Duration {
    Duration::from_secs(10).saturating_mul(1 << failures.min(4)).min(Duration::from_secs(120))
}

/// What became of a program's image.
#[derive(Debug, Default)]
pub(super) enum ImageState {
    #[default]
    Resolving,
    Resolved(Resolution),
    Failed(Problem),
}

impl ImageState {
    pub(super) fn seen(&self) -> Image<'_> {
        match self {
            ImageState::Resolving => Image::Resolving,
            ImageState::Resolved(resolution) => Image::Resolved(resolution),
            ImageState::Failed(problem) => Image::Failed(problem),
        }
    }
}

impl Index {
    /// Asks for the image, if it is another than the one asked for.
    pub(super) fn ask(&mut self, uid: &str) {
        let Some(entry) = self.programs.get_mut(uid) else { return };
        let Ok(object) = &entry.guard else { return };
        let (image, generation) = (&object.spec.image, object.metadata.generation.unwrap_or_default());
        let before = entry.asked.as_ref().is_some_and(|(asked, at)| match &entry.image {
            // After a failure every change of the object is a reason to ask again.
            ImageState::Failed(_) => asked == image && *at == generation,
            ImageState::Resolving | ImageState::Resolved(_) => asked == image,
        });
        if before {
            return;
        }
        let resolved = object.status.as_ref().and_then(|status| status.image.as_ref());
        let status =
            resolved.filter(|resolved| resolved.reference == image.reference).map(|image| image.digest.clone());
        let known = match &entry.image {
            ImageState::Resolved(known) if known.reference == image.reference => Some(known.digest.clone()),
            _ => status,
        };
        let request = Request {
            uid: uid.into(),
            namespace: object.metadata.namespace.clone().unwrap_or_default(),
            generation,
            image: image.clone(),
            known,
            failures: 0,
        };
        if !matches!(&entry.image, ImageState::Resolved(known) if known.reference == image.reference) {
            entry.image = ImageState::Resolving;
        }
        entry.asked = Some((image.clone(), generation));
        self.retries.remove(uid);
        self.requests.push(request);
    }

    pub(super) fn image(&mut self, request: Request, answer: Result<Resolution, Problem>, now: Instant) {
        let Some(entry) = self.programs.get_mut(&request.uid) else { return };
        // An answer to a question of before.
        if entry.asked != Some((request.image.clone(), request.generation)) || entry.deleting.is_some() {
            return;
        }
        match answer {
            Ok(resolution) => {
                let known = Some(resolution.digest.clone());
                if let Some(note) = missing(&entry.image, &resolution) {
                    entry.notes.push_back(note);
                }
                entry.image = ImageState::Resolved(resolution);
                let lacking = self.lacks_credentials(&request.uid);
                let failures = if lacking { request.failures.saturating_add(1) } else { 0 };
                self.retries.insert(request.uid.clone(), Request { failures, known, ..request.clone() });
                self.read_secrets_again(&request.uid, now);
            }
            Err(problem) => {
                // Programs of one registry do not ask all at once.
                let spread = f32::from(request.uid.bytes().fold(0, u8::wrapping_add)) / 255.0;
                let wait = backoff(&problem, request.failures, spread);
                entry.image = ImageState::Failed(problem);
                let again = Request { failures: request.failures.saturating_add(1), ..request.clone() };
                self.wake(now + wait, Key::Image(request.uid.clone()));
                self.retries.insert(request.uid.clone(), again);
            }
        }
        self.reassign(&request.uid);
        self.dirty.insert(Key::Program(request.uid));
    }

    /// Whether a program names Secrets, and one could not be used or some node reports that the registry refuses what is
    /// in them.
    fn lacks_credentials(&self, uid: &str) -> bool {
        let entry = self.programs.get(uid).filter(|entry| entry.deleting.is_none());
        let Some((entry, object)) = entry.and_then(|entry| Some((entry, entry.object()?))) else { return false };
        let refused = |node: &String| {
            let report = self.nodes.get(node).and_then(|node| node.reports.get(uid));
            report.is_some_and(|report| report.reason == Reason::ImageUnauthorized.as_str())
        };
        let missing = matches!(&entry.image, ImageState::Resolved(resolution) if !resolution.missing.is_empty());
        object.spec.image.pull_secrets.is_some() && (missing || entry.nodes.iter().any(refused))
    }

    /// As long as credentials are lacking, the Secrets are read again after a while: they may have been made or corrected.
    pub(super) fn read_secrets_again(&mut self, uid: &str, now: Instant) {
        if self.lacks_credentials(uid)
            && let Some(request) = self.retries.get(uid)
        {
            self.wake(now + credentials_wait(request.failures), Key::Image(uid.into()));
        }
    }
}

/// The image is there all the same; where it is not, nobody would look for the reason at a Secret.
fn missing(before: &ImageState, now: &Resolution) -> Option<Note> {
    let said = matches!(before, ImageState::Resolved(before) if before.missing == now.missing);
    (!said && !now.missing.is_empty()).then(|| Note {
        warning: true,
        reason: Reason::ImageUnauthorized,
        message: format!("{}; the image was found without it", now.missing.join("; ")),
    })
}

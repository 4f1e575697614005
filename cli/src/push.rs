//! `push`: an object into a registry, so that an EbpfProgram can name it.
//!
//! Guarantees: an object that no agent could load is refused before anything is sent. The same object with the same
//! annotations is the same image, byte for byte.

use serde_json::json;
use skep_object::Object;

use crate::args::{Push, PushFormat};
use crate::error::Error;
use crate::{output, registry};

/// Runs the command.
pub async fn run(push: &Push) -> Result<(), Error> {
    let bytes = registry::read(&push.object)?;
    let bad = |problem: String| Error::Object { path: push.object.clone(), problem };
    let object = Object::parse(bytes.clone()).map_err(|e| bad(e.to_string()))?;
    let programs: Vec<&str> = object.programs().map(|function| function.name.as_str()).collect();
    if programs.is_empty() {
        return Err(bad("it has no program: put a function into a section such as SEC(\"xdp\")".into()));
    }
    let (registry, auth) = registry::open(&push.reference, push.ca.as_deref(), push.plain_http)?;
    let image = skep_image::build(&bytes, &push.annotation.iter().cloned().collect());
    let digest = registry.push(&push.reference, &image, &auth).await?;
    let pinned = format!("{}@{}", without_tag(&push.reference), digest.as_str());
    output::print(&match push.output {
        PushFormat::Text => format!("{pinned}\n"),
        PushFormat::Json => {
            let text =
                json!({"reference": push.reference, "digest": digest.as_str(), "pinned": pinned, "programs": programs});
            format!("{text:#}\n")
        }
    })
}

/// A colon after the last slash is a tag's, another a port's.
fn without_tag(reference: &str) -> &str {
    let name = reference.rfind('/').map_or(0, |slash| slash + 1);
    reference[name..].find(':').map_or(reference, |colon| &reference[..name + colon])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_not_a_port() {
        assert_eq!(without_tag("a.example.com:5000/x/y:v1"), "a.example.com:5000/x/y");
        assert_eq!(without_tag("a.example.com:5000/x"), "a.example.com:5000/x");
        assert_eq!(without_tag("x:v1"), "x");
    }
}

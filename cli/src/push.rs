//! `push`: an object into a registry, so that an EbpfProgram can name it.
//!
//! Guarantees: an object that no agent could load is refused before anything is sent. The same object with the same
//! annotations is the same image, byte for byte.

use std::path::{Path, PathBuf};

use serde_json::json;
use skep_image::{Auth, Registry, RegistryConfig, auth_from_docker_config, registry_of};
use skep_object::Object;

use crate::args::{Push, PushFormat};
use crate::error::Error;
use crate::output;

/// Runs the command.
pub async fn run(push: &Push) -> Result<(), Error> {
    let bytes = read(&push.object)?;
    let bad = |problem: String| Error::Object { path: push.object.clone(), problem };
    let object = Object::parse(bytes.clone()).map_err(|e| bad(e.to_string()))?;
    let programs: Vec<&str> = object.programs().map(|function| function.name.as_str()).collect();
    if programs.is_empty() {
        return Err(bad("it has no program: put a function into a section such as SEC(\"xdp\")".into()));
    }
    let registry = registry_of(&push.reference)?;
    let mut config = RegistryConfig::default();
    if let Some(ca) = &push.ca {
        config.ca_pem.push(read(ca)?);
    }
    if push.plain_http {
        config.plain_http.push(registry.clone());
    }
    let image = skep_image::build(&bytes, &push.annotation.iter().cloned().collect());
    let digest = Registry::new(&config)?.push(&push.reference, &image, &login(&registry)?).await?;
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

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|problem| Error::File { path: path.to_owned(), problem })
}

/// A colon after the last slash is a tag's, another a port's.
fn without_tag(reference: &str) -> &str {
    let name = reference.rfind('/').map_or(0, |slash| slash + 1);
    reference[name..].find(':').map_or(reference, |colon| &reference[..name + colon])
}

/// What `docker login` or `podman login` left for a registry.
fn login(registry: &str) -> Result<Auth, Error> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let of_docker = || variable("DOCKER_CONFIG").or_else(|| Some(variable("HOME")?.join(".docker")));
    let path = variable("REGISTRY_AUTH_FILE").or_else(|| Some(of_docker()?.join("config.json")));
    match path.map(|path| (std::fs::read(&path), path)) {
        Some((Ok(json), _)) => Ok(auth_from_docker_config(&json, registry)?),
        Some((Err(e), path)) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::File { path, problem: e }),
        _ => Ok(Auth::Anonymous),
    }
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

//! Registries, as the user of this machine may use them.

use std::path::{Path, PathBuf};

use skep_image::{Auth, Registry, RegistryConfig, auth_from_docker_config, registry_of};

use crate::error::Error;

/// The registry of a reference, and what opens it. `ca`: certificates of its private authority.
pub fn open(reference: &str, ca: Option<&Path>, plain_http: bool) -> Result<(Registry, Auth), Error> {
    let registry = registry_of(reference)?;
    let mut config = RegistryConfig::default();
    if let Some(ca) = ca {
        config.ca_pem.push(read(ca)?);
    }
    if plain_http {
        config.plain_http.push(registry.clone());
    }
    Ok((Registry::new(&config)?, login(&registry)?))
}

/// A file's bytes.
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|problem| Error::File { path: path.to_owned(), problem })
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

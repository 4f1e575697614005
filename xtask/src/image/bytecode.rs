//! Bytecode images, by the crate that the agent reads them with.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use skep_image::{Auth, Registry, RegistryConfig, registry_of};

use super::Connection;

pub fn push(object: &Path, reference: &str, connection: &Connection) -> Result<()> {
    let bytes = std::fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    let image = skep_image::build(&bytes, &BTreeMap::new());
    let mut config = RegistryConfig::default();
    if let Some(ca) = &connection.ca {
        config.ca_pem.push(std::fs::read(ca).with_context(|| format!("cannot read {}", ca.display()))?);
    }
    if connection.plain_http {
        config.plain_http.push(registry_of(reference)?);
    }
    // Already installed is as good.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let digest = runtime.block_on(Registry::new(&config)?.push(reference, &image, &Auth::Anonymous))?;
    let (repository, _tag) = reference.rsplit_once(':').unwrap_or((reference, ""));
    println!("{repository}@{}", digest.as_str());
    Ok(())
}

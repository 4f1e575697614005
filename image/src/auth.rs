//! Credentials for a registry.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use crate::error::ImageError;

/// How to show oneself to a registry.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Auth {
    /// Not at all.
    #[default]
    Anonymous,
    /// By name and password, also to the service that gives bearer tokens.
    Basic {
        /// User name.
        user: String,
        /// Password or token.
        password: String,
    },
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Basic { .. } => f.write_str("Basic { .. }"),
        }
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

/// The credentials for `registry` (`host` or `host:port`, as [`crate::registry_of`] gives it) in the
/// `.dockerconfigjson` of a Secret; [`Auth::Anonymous`] if it has none for it.
pub fn auth_from_docker_config(json: &[u8], registry: &str) -> Result<Auth, ImageError> {
    let bad = |detail: String| ImageError::BadCredentials { registry: registry.into(), detail };
    // serde_json's own text may quote the input: say only where.
    let config: DockerConfig = serde_json::from_slice(json)
        .map_err(|e| bad(format!("no .dockerconfigjson: line {}, column {}", e.line(), e.column())))?;
    let Some((_, entry)) = config.auths.into_iter().find(|(key, _)| host(key) == host(registry)) else {
        return Ok(Auth::Anonymous);
    };
    match (entry.username, entry.password, entry.auth) {
        (Some(user), Some(password), _) => Ok(Auth::Basic { user, password }),
        (_, _, Some(auth)) => {
            let auth = auth.trim();
            let bytes = STANDARD.decode(auth).or_else(|_| STANDARD_NO_PAD.decode(auth));
            let text = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = text.as_deref().and_then(|text| text.split_once(':'));
            let (user, password) = pair.ok_or_else(|| bad("auth is not base64 of user:password".into()))?;
            Ok(Auth::Basic { user: user.into(), password: password.into() })
        }
        _ => Err(bad("the entry has neither auth nor username and password".into())),
    }
}

/// `https://index.docker.io/v1/` and `docker.io` name the same registry.
fn host(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    match key.split('/').next().unwrap_or(key) {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(user: &str, password: &str) -> Auth {
        Auth::Basic { user: user.into(), password: password.into() }
    }

    #[test]
    fn every_way_of_writing_an_entry_is_read() {
        let json = br#"{"auths": {
            "registry.example.com:5000": {"auth": "dXNlcjpwYTpzcw=="},
            "https://index.docker.io/v1/": {"username": "me", "password": "secret"},
            "ghcr.io/team": {"auth": "dTpw"},
            "broken.example.com": {"auth": "%%%"}, "empty.example.com": {}}}"#;
        let auth = |registry: &str| auth_from_docker_config(json, registry);
        assert_eq!(auth("registry.example.com:5000").unwrap(), basic("user", "pa:ss"));
        assert_eq!(auth("docker.io").unwrap(), basic("me", "secret"));
        assert_eq!(auth("index.docker.io").unwrap(), basic("me", "secret"));
        assert_eq!(auth("ghcr.io").unwrap(), basic("u", "p"));
        assert_eq!(auth("registry.example.com").unwrap(), Auth::Anonymous);
        for registry in ["broken.example.com", "empty.example.com"] {
            assert_eq!(auth(registry).unwrap_err().reason(), "ImageUnauthorized");
        }
        let error = auth_from_docker_config(br#"{"auths": "hunter2"}"#, "a").unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(format!("{:?}", basic("me", "secret")), "Basic { .. }");
    }
}

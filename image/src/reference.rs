//! Names of images: `registry/repository:tag@digest`, with Docker's shorthands.
//!
//! Read here and not by oci-client, whose regular expression takes ten megabytes for as long as the process lives: the
//! agent has to do with three references and runs on every node.

use oci_client::Reference;

use crate::digest::Digest;
use crate::error::{Fault, ImageError};

/// Longest repository, and longest tag (OCI distribution specification 1.1).
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

/// Reads a reference; without tag and digest it means `latest`, without a registry Docker's.
pub fn parse(text: &str) -> Result<Reference, ImageError> {
    parts(text).map_err(|why| Fault::Reference(why).of(text))
}

fn parts(text: &str) -> Result<Reference, String> {
    if text.is_empty() {
        return Err("it is empty".into());
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|e| e.to_string())?)),
        None => (text, None),
    };
    // A colon before the last slash is that of a port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
        return Err(format!("{tag:?} is no tag: letters, digits, _ . - and at most {MAX_TAG} of them"));
    }
    let is_registry = |part: &&str| part.contains(['.', ':']) || *part == "localhost";
    let (registry, repository) = match name.split_once('/').filter(|(first, _)| is_registry(first)) {
        Some((registry, repository)) if is_host(registry) => (registry, repository),
        Some((registry, _)) => return Err(format!("{registry:?} is no registry: write HOST or HOST:PORT")),
        None => ("docker.io", name),
    };
    if !is_repository(repository) {
        let why = "write lower case letters and digits, with . _ - between them, in parts divided by /";
        return Err(format!("{repository:?} is no repository: {why}"));
    }
    let registry = if registry == "index.docker.io" { "docker.io" } else { registry }.to_owned();
    let official = registry == "docker.io" && !repository.contains('/');
    let repository = if official { format!("library/{repository}") } else { repository.to_owned() };
    if repository.len() > MAX_REPOSITORY {
        return Err(format!("its repository has {} characters; at most {MAX_REPOSITORY}", repository.len()));
    }
    let digest = digest.map(|digest| digest.to_string());
    Ok(match (tag, digest) {
        (Some(tag), Some(digest)) => Reference::with_tag_and_digest(registry, repository, tag.to_owned(), digest),
        (None, Some(digest)) => Reference::with_digest(registry, repository, digest),
        (tag, None) => Reference::with_tag(registry, repository, tag.unwrap_or("latest").to_owned()),
    })
}

fn is_tag(tag: &str) -> bool {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|c| word(c) || matches!(c, b'.' | b'-'))
}

fn is_host(registry: &str) -> bool {
    let (host, port) = registry.split_once(':').unwrap_or((registry, "0"));
    let label = |label: &str| {
        let inner = !label.is_empty() && !label.starts_with('-') && !label.ends_with('-');
        inner && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
    };
    host.split('.').all(label) && !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit())
}

fn is_repository(repository: &str) -> bool {
    repository.split('/').all(is_part)
}

/// Alphanumeric runs, with one dot, one or two underscores, or any number of hyphens between them.
fn is_part(part: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let ends = part.starts_with(alphanumeric) && part.ends_with(alphanumeric);
    let mut between = part.split(alphanumeric).filter(|between| !between.is_empty());
    ends && between.all(|between| matches!(between, "." | "_" | "__") || between.bytes().all(|c| c == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// Every text is read as oci-client reads it, or refused as it refuses it.
    #[test]
    fn references_mean_what_other_clients_say_they_mean() {
        let names = [
            "",
            "a",
            "a/b",
            "a/b/c",
            "A",
            "a/B",
            "a.b/c",
            "a.b",
            "localhost/x",
            "localhost",
            "h:5000/r",
            "h:5000",
            "h:/r",
            "h:x/r",
            "127.0.0.1:5000/r/s",
            "-h.x/r",
            "h-.x/r",
            "h..x/r",
            "index.docker.io/r",
            "docker.io/r/s",
            "a//b",
            "/a",
            "a/",
            "a.b/",
            "a_b",
            "a__b",
            "a___b",
            "a--b",
            "a..b",
            "a.-b",
            "_a",
            "a_",
            "r.x/a-b_c.d",
            "r.x/ä",
            "r .x/a",
            "r.x/a b",
            "a:b/c",
            "UPPER.case/r",
            "r.x:5000/R",
        ];
        let tags = ["", ":t", ":T-1.2_x", ":", ":-t", ":.t", ":_t", ":t t", ":t:u", ":t/u", ":latest"];
        let digests = [String::new(), format!("@{DIGEST}"), "@".into(), "@sha256:12".into(), format!("@{DIGEST}0")];
        let (mut read, mut refused) = (0, 0);
        for name in names {
            for tag in tags {
                for digest in &digests {
                    let text = format!("{name}{tag}{digest}");
                    match (parts(&text), text.parse::<Reference>()) {
                        (Ok(ours), Ok(theirs)) => {
                            assert_eq!(ours, theirs, "{text}");
                            read += 1;
                        }
                        (Err(_), Err(_)) => refused += 1,
                        (ours, theirs) => panic!("{text}: {ours:?}, but oci-client: {theirs:?}"),
                    }
                }
            }
        }
        assert!(read > 100 && refused > 100, "{read} read, {refused} refused");
        let long = format!("r.x/{}", "a".repeat(256));
        assert!(parts(&long).is_err() && long.parse::<Reference>().is_err());
        let tag = |n: usize| format!("r.x/a:{}", "t".repeat(n));
        assert!(parts(&tag(128)).is_ok() && parts(&tag(129)).is_err());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, said) in [
            ("", "it is empty"),
            ("r.x/a:-t", "\"-t\" is no tag: letters, digits, _ . - and at most 128 of them"),
            ("r.x:port/a", "\"r.x:port\" is no registry: write HOST or HOST:PORT"),
            ("r.x/Flows", "\"Flows\" is no repository: write lower case"),
            ("r.x/a@sha256:12", "is no digest: it should be sha256: and 64 lower case hexadecimal digits"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}

//! Probes in binaries: one place, or many by one link, in files of the node or of selected containers.

use std::collections::BTreeSet;
use std::path::PathBuf;

use skep_crds::many::{Symbols, UprobeMulti, UretprobeMulti};
use skep_crds::selector::PodSelector;
use skep_crds::tracing::Uprobe;
use skep_kernel::hook::{Options, Target};
use skep_object::kind::{Kind, attach as types};

use super::{Binaries, Entry, NotOpened, Opened, gate_name};

/// What an attach entry asks for of a binary.
pub(super) trait Probe {
    fn binary(&self) -> &str;
    fn pods(&self) -> Option<&PodSelector>;
    fn attach_type(&self) -> u32;
    /// What of the binary, for people.
    fn place(&self) -> String;
    fn target(&self, binary: &Opened, name: String, binaries: &dyn Binaries) -> Result<Target, String>;
}

pub(super) struct OneSymbol<'a>(pub &'a Uprobe);

impl Probe for OneSymbol<'_> {
    fn binary(&self) -> &str {
        &self.0.binary
    }
    fn pods(&self) -> Option<&PodSelector> {
        self.0.pods.as_ref()
    }
    fn attach_type(&self) -> u32 {
        types::PERF_EVENT
    }
    fn place(&self) -> String {
        match (&self.0.symbol, self.0.offset) {
            (Some(symbol), None) => symbol.clone(),
            (Some(symbol), Some(offset)) => format!("{symbol}+{offset:#x}"),
            (None, offset) => format!("{:#x}", offset.unwrap_or_default()),
        }
    }
    fn target(&self, binary: &Opened, name: String, binaries: &dyn Binaries) -> Result<Target, String> {
        let base = self.0.symbol.as_ref().map_or(Ok(0), |symbol| binaries.symbol(binary, symbol))?;
        let offset = base + self.0.offset.unwrap_or_default() as u64;
        Ok(Target::Binary { path: binary.path(), identity: binary.identity.clone(), offset, name })
    }
}

pub(super) struct ManySymbols<'a> {
    binary: &'a str,
    symbols: &'a Symbols,
    pods: Option<&'a PodSelector>,
    attach_type: u32,
}

impl<'a> ManySymbols<'a> {
    pub fn entries(probe: &'a UprobeMulti) -> Self {
        let attach_type =
            if probe.session == Some(true) { types::TRACE_UPROBE_SESSION } else { types::TRACE_UPROBE_MULTI };
        ManySymbols { binary: &probe.binary, symbols: &probe.symbols, pods: probe.pods.as_ref(), attach_type }
    }
    pub fn returns(probe: &'a UretprobeMulti) -> Self {
        let attach_type = types::TRACE_UPROBE_MULTI;
        ManySymbols { binary: &probe.binary, symbols: &probe.symbols, pods: probe.pods.as_ref(), attach_type }
    }
}

impl Probe for ManySymbols<'_> {
    fn binary(&self) -> &str {
        self.binary
    }
    fn pods(&self) -> Option<&PodSelector> {
        self.pods
    }
    fn attach_type(&self) -> u32 {
        self.attach_type
    }
    fn place(&self) -> String {
        match self.symbols {
            Symbols::Pattern(pattern) => pattern.0.clone(),
            Symbols::Names(names) => match names.0.as_slice() {
                [first, more @ ..] if !more.is_empty() => format!("{} and {} more", first.0, more.len()),
                names => names.first().map(|name| name.0.clone()).unwrap_or_default(),
            },
        }
    }
    fn target(&self, binary: &Opened, name: String, binaries: &dyn Binaries) -> Result<Target, String> {
        let mut offsets = match self.symbols {
            Symbols::Names(names) => {
                names.0.iter().map(|name| binaries.symbol(binary, &name.0)).collect::<Result<Vec<_>, _>>()?
            }
            Symbols::Pattern(pattern) => binaries.functions(binary, &pattern.0)?,
        };
        // Aliases are one place, which the kernel would take twice.
        offsets.sort_unstable();
        offsets.dedup();
        Ok(Target::Symbols { path: binary.path(), identity: binary.identity.clone(), offsets, name })
    }
}

impl Entry<'_> {
    pub(super) fn binary(&mut self, kind: Kind, probe: &dyn Probe, binaries: &dyn Binaries) {
        let shown = format!("{}:{}", probe.binary(), probe.place());
        self.name(kind, None);
        let places = match probe.pods() {
            None => match &self.view.root {
                Some(root) => vec![Place { root: root.clone(), owner: None }],
                None => return self.missing(shown, "the node's root cannot be looked into"),
            },
            Some(pods) => self.containers(pods),
        };
        let (mut opened, mut absent) = (Vec::new(), Vec::new());
        for place in places {
            match binaries.open(&place.root, probe.binary()) {
                Ok(binary) => opened.push((place.owner, binary)),
                Err(NotOpened::NoFile(why)) => absent.push((place.owner, why)),
                Err(NotOpened::NoRoot) => {}
            }
        }
        // Some may be without: beside those that have the file, they have no target.
        if let (true, Some((_, why))) = (opened.is_empty(), absent.first()) {
            let owners = absent.iter().filter_map(|(owner, _)| owner.as_deref());
            self.missing(shown.clone(), format!("{why}{}", within(owners)));
        }
        self.probes(kind, probe, &shown, opened, binaries);
    }

    fn probes(
        &mut self,
        kind: Kind,
        probe: &dyn Probe,
        shown: &str,
        opened: Vec<(Option<String>, Opened)>,
        binaries: &dyn Binaries,
    ) {
        let gate = probe.pods().map(gate_name);
        // Containers of one image share the file: it is looked into once.
        let mut seen = BTreeSet::new();
        for (owner, binary) in opened {
            if !seen.insert(binary.identity.clone()) {
                continue;
            }
            match probe.target(&binary, shown.to_owned(), binaries) {
                Ok(target) => {
                    self.hook(kind, probe.attach_type(), Options::default(), gate.clone(), target);
                    if let Some(hook) = self.found.hooks.last_mut() {
                        hook.file = Some(binary.file);
                    }
                }
                Err(why) => {
                    self.missing(shown, format!("{}: {why}{}", probe.binary(), within(owner.as_deref().into_iter())))
                }
            }
        }
    }

    fn containers(&mut self, pods: &PodSelector) -> Vec<Place> {
        let wanted = |name: &String| pods.containers.as_ref().is_none_or(|names| names.contains(name));
        let mut places = Vec::new();
        for pod in self.pods(pods) {
            let owner = format!("pod {}/{}", pod.namespace, pod.name);
            let roots = pod.containers.iter().filter(|c| wanted(&c.name)).map(|c| format!("/proc/{}/root", c.pid));
            places.extend(roots.map(|root| Place { root: root.into(), owner: Some(owner.clone()) }));
        }
        places
    }
}

/// Where a binary is looked for.
struct Place {
    root: PathBuf,
    /// For people: the pod; none on the node itself.
    owner: Option<String>,
}

/// ` in` and at most three of the names; nothing if there are none.
fn within<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: BTreeSet<&str> = names.collect();
    let shown: Vec<&str> = names.iter().take(3).copied().collect();
    match (shown.len(), names.len() - shown.len()) {
        (0, _) => String::new(),
        (_, 0) => format!(" in {}", shown.join(", ")),
        (_, more) => format!(" in {} and {more} more", shown.join(", ")),
    }
}

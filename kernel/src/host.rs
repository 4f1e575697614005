//! The real kernel, by bpffs.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use skep_object::core::TargetBtf;
use skep_object::kind::{AttachTo, UpdateWay};

use crate::attach;
use crate::bpffs::{self, Bpffs, escape};
use crate::changed;
use crate::error::KernelError;
use crate::functions;
use crate::gate;
use crate::hook::Hook;
use crate::kept::Kept;
use crate::load::{self, Loaded};
use crate::migrate::{self, Settled};
use crate::observe;
use crate::order::{self, Standing};
use crate::remains::{self, Remain};
use crate::seam::{Kernel, LoadOutcome, LoadRequest, Observed, ProgramAt};
use crate::shared::{self, Shares};
use crate::sys::{self, link, map, program};
use crate::tc::Filters;

pub(crate) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// How long the kernel may take to free the place of a link, and how often it is asked.
const FREED_WITHIN: Duration = Duration::from_secs(2);
const FREED_LOOK: Duration = Duration::from_micros(200);

/// This host's kernel, with Skep's directory in a bpffs.
#[derive(Debug)]
pub struct Host {
    bpffs: Bpffs,
    filters: Filters,
    shares: Shares,
    /// Parsed at first use: it takes tens of milliseconds, and 16 MB.
    types: OnceLock<Option<Arc<TargetBtf>>>,
}

impl Host {
    /// `root` is Skep's directory, e.g. /sys/fs/bpf/skep; its parent must be in a bpffs. `state_dir` takes the records of
    /// what cannot be pinned.
    pub fn open(root: &Path, state_dir: &Path) -> Result<Self, KernelError> {
        let host = Host {
            bpffs: Bpffs::open(root)?,
            filters: Filters::new(state_dir),
            shares: Shares::default(),
            types: OnceLock::new(),
        };
        // What an earlier process made for a load that it did not finish.
        host.shares.collect(&host.bpffs)?;
        Ok(host)
    }
    pub fn bpffs(&self) -> &Bpffs {
        &self.bpffs
    }
    /// The running kernel's types; `None` where it has none.
    pub fn types(&self) -> Option<Arc<TargetBtf>> {
        self.types.get_or_init(|| TargetBtf::parse(&std::fs::read(VMLINUX).ok()?).ok().map(Arc::new)).clone()
    }
    /// Parsed only if the request has to do with the kernel's types.
    fn types_for(&self, request: &LoadRequest) -> Option<Arc<TargetBtf>> {
        let by_btf = request
            .variants
            .iter()
            .any(|v| matches!(v.attributes.attach_to, AttachTo::Function(_) | AttachTo::Tracepoint(_)));
        if by_btf || request.object.wants_types() { self.types() } else { None }
    }

    /// Opens a map of a load, or a kept one.
    pub fn open_map(&self, uid: &str, load: &str, map: &str) -> Result<OwnedFd, KernelError> {
        let path = self.bpffs.load(uid, load).join("maps").join(escape(map));
        sys::open_pin(&path).map_err(KernelError::io(format!("opening map {map}")))
    }

    /// Opens the map of a program that has that name and id, by the pin of the load that has it: an id alone may be somebody
    /// else's by now. `None`: no load has it. Cheaper than a look at everything.
    pub fn find_map(&self, uid: &str, map: &str, id: u32) -> Result<Option<OwnedFd>, KernelError> {
        for load in self.bpffs.loads(uid)? {
            // One that goes, or is half done, may lack it.
            if let Ok(fd) = self.open_map(uid, &load, map)
                && map::info(fd.as_fd()).is_ok_and(|info| info.id == id)
            {
                return Ok(Some(fd));
            }
        }
        Ok(None)
    }

    /// Has the programs of a request verified once more, beside whatever runs, and leaves nothing.
    pub fn verify(&self, request: &LoadRequest) -> Result<Vec<load::Verified>, KernelError> {
        load::verify(request, self.types_for(request).as_deref())
    }

    /// Loads the programs of a request once more, with maps of their own; they go with the descriptors.
    pub fn copy(&self, request: &LoadRequest) -> Result<load::Loaded, KernelError> {
        load::copy(request, self.types_for(request).as_deref())
    }

    /// Opens a program of a load by the name of its pin.
    pub fn open_program(&self, uid: &str, load: &str, pin: &str) -> Result<OwnedFd, KernelError> {
        self.program_fd(uid, &ProgramAt { load: load.into(), pin: pin.into() })
    }

    /// What the program of an iterator's link writes, run as it is read: a file that ends.
    pub fn read_iterator(&self, uid: &str, link: &str) -> Result<OwnedFd, KernelError> {
        let failed = || KernelError::io("reading an iterator");
        let link = sys::open_pin(&self.bpffs.link(uid, link)).map_err(failed())?;
        link::iterate(link.as_fd()).map_err(failed())
    }

    fn kept<'a>(&'a self, uid: &'a str) -> Kept<'a> {
        Kept { bpffs: &self.bpffs, uid }
    }

    fn program_fd(&self, uid: &str, program: &ProgramAt) -> Result<OwnedFd, KernelError> {
        let path = self.bpffs.load(uid, &program.load).join("progs").join(escape(&program.pin));
        sys::open_pin(&path).map_err(KernelError::io(format!("opening program {}", program.pin)))
    }

    /// The map that a hook is on, of the load whose program goes there.
    fn map_of(&self, uid: &str, hook: &Hook, load: &str) -> Result<Option<OwnedFd>, KernelError> {
        let Some(name) = hook.target.map() else { return Ok(None) };
        let path = self.bpffs.load(uid, load).join("maps").join(escape(name));
        sys::open_pin(&path).map(Some).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => KernelError::TargetNotFound {
                target: format!("map {name}"),
                why: "of the object's maps, none that the selected programs have is called so".into(),
            },
            _ => KernelError::Io { what: format!("opening map {name}"), source: e },
        })
    }

    /// A load from nothing.
    fn make(&self, uid: &str, name: &str, request: &LoadRequest) -> Result<LoadOutcome, KernelError> {
        let kept = self.kept(uid);
        let mut inherited = kept.inherit(request)?;
        let mut joined = self.shares.join(&self.bpffs, request)?;
        let mut reuse = std::mem::take(&mut inherited.maps);
        reuse.append(&mut joined.maps);
        let loaded = load::load(request, reuse, self.types_for(request).as_deref())?;
        let staged = self.bpffs.staged_load(uid, name);
        bpffs::remove_tree(&staged)?;
        let result = self
            .stage(&staged, &loaded)
            .and_then(|()| kept.stage(&staged, &inherited))
            .and_then(|()| shared::mark(&staged, request));
        if let Err(e) = result {
            // The error that stopped us is the one to tell; what is left ends in `~` and goes with the next pass.
            let _ = bpffs::remove_tree(&staged);
            return Err(e);
        }
        bpffs::rename(&staged, &self.bpffs.load(uid, name))?;
        kept.publish_new(name, request)?;
        if !request.share.is_empty() {
            inherited.outcome.reset.extend(self.left_for_groups(uid, name, request)?);
        }
        Ok(inherited.outcome)
    }

    /// Maps that were the program's own, and are those of groups in this load; said of each.
    fn left_for_groups(
        &self,
        uid: &str,
        name: &str,
        request: &LoadRequest,
    ) -> Result<BTreeMap<String, String>, KernelError> {
        let mut own = bpffs::list(&self.bpffs.kept_maps(uid))?;
        for other in self.bpffs.loads(uid)?.iter().filter(|other| *other != name) {
            let dir = self.bpffs.load(uid, other);
            let shared = shared::of_load(&self.bpffs, &dir)?;
            own.extend(bpffs::list(&dir.join("maps"))?.into_iter().filter(|map| !shared.contains_key(map)));
        }
        let left = request.share.iter().filter(|(map, _)| own.contains(map));
        Ok(left.map(|(map, group)| (map.clone(), format!("it is that of group {} now", group.name))).collect())
    }

    /// The variants that a complete load lacks, with the load's own maps.
    fn complete(&self, uid: &str, name: &str, request: &LoadRequest) -> Result<LoadOutcome, KernelError> {
        let dir = self.bpffs.load(uid, name);
        let present = bpffs::list(&dir.join("progs"))?;
        self.find_maps(&dir, &present, request)?;
        self.shares.pin_again(&self.bpffs, &dir)?;
        let mut missing = request.clone();
        missing.variants.retain(|v| !present.contains(&v.pin()));
        if missing.variants.is_empty() {
            return Ok(LoadOutcome::default());
        }
        let mut reuse = BTreeMap::new();
        for map in bpffs::list(&dir.join("maps"))? {
            reuse.insert(map.clone(), self.open_map(uid, name, &map)?);
        }
        let known: Vec<String> = reuse.keys().cloned().collect();
        let loaded = load::load(&missing, reuse, self.types_for(&missing).as_deref())?;
        for (map, fd) in loaded.maps.iter().filter(|(m, _)| !known.contains(m)) {
            pin(fd, &dir.join("maps").join(escape(map)))?;
        }
        // Each pin is whole by itself: after a crash the rest is still missing, and is loaded then.
        for (program, fd) in &loaded.programs {
            pin(fd, &dir.join("progs").join(escape(program)))?;
        }
        self.kept(uid).publish_new(name, request)?;
        Ok(LoadOutcome::default())
    }

    /// Pins maps again whose pins somebody deleted, as long as a program of the load uses them.
    fn find_maps(&self, dir: &Path, programs: &[String], request: &LoadRequest) -> Result<(), KernelError> {
        let pinned = bpffs::list(&dir.join("maps"))?;
        let failed = || KernelError::io("finding the maps of a load again");
        let mut taken = BTreeSet::new();
        for map in &pinned {
            let fd = sys::open_pin(&dir.join("maps").join(escape(map))).map_err(failed())?;
            taken.insert(map::info(fd.as_fd()).map_err(failed())?.id);
        }
        let lost: Vec<_> = request.maps.iter().filter(|def| !pinned.contains(&def.name)).collect();
        for program in programs.iter().filter(|_| !lost.is_empty()) {
            let fd = sys::open_pin(&dir.join("progs").join(escape(program))).map_err(failed())?;
            for id in program::map_ids(fd.as_fd()).map_err(failed())? {
                let map = map::by_id(id).map_err(failed())?;
                let info = map::info(map.as_fd()).map_err(failed())?;
                let found: Vec<_> = lost.iter().filter(|def| map::is_of(&info, def)).collect();
                if found.is_empty() || !taken.insert(id) {
                    continue;
                }
                let [def] = found[..] else {
                    let names: Vec<&str> = found.iter().map(|def| def.name.as_str()).collect();
                    return Err(KernelError::MapIncompatible {
                        map: names.join(" or "),
                        why: "their pins were deleted, and the kernel keeps too little of their names to tell them apart; restart the EbpfProgram, which begins them anew".into(),
                    });
                };
                bpffs::make_dir(&dir.join("maps"))?;
                pin(&map, &dir.join("maps").join(escape(&def.name)))?;
            }
        }
        Ok(())
    }

    /// Attaches where a link was until now: the kernel frees its place a moment after the last reference is gone.
    fn attach_when_free(&self, program: BorrowedFd<'_>, hook: &Hook) -> Result<OwnedFd, KernelError> {
        let start = Instant::now();
        loop {
            match attach::attach(program, hook, &self.bpffs, None) {
                Err(KernelError::HookBusy { .. }) if start.elapsed() < FREED_WITHIN => std::thread::sleep(FREED_LOOK),
                other => return other,
            }
        }
    }

    fn stage(&self, dir: &Path, loaded: &Loaded) -> Result<(), KernelError> {
        // From above: whoever begins below finds out by failing what is not there yet.
        for dir in [dir, &dir.join("progs"), &dir.join("maps")] {
            bpffs::make_dir(dir)?;
        }
        for (map, fd) in &loaded.maps {
            pin(fd, &dir.join("maps").join(escape(map)))?;
        }
        for (program, fd) in &loaded.programs {
            pin(fd, &dir.join("progs").join(escape(program)))?;
        }
        Ok(())
    }
}

fn pin(fd: &OwnedFd, path: &Path) -> Result<(), KernelError> {
    sys::pin(fd.as_fd(), path).map_err(KernelError::io(format!("pinning {}", path.display())))
}

/// Whether the pinned link is on another map.
fn is_on_another(link: &Path, map: Option<&OwnedFd>) -> Result<bool, KernelError> {
    let Some(map) = map else { return Ok(false) };
    let failed = || KernelError::io("asking for the map of a link");
    let on = sys::open_pin(link).and_then(|link| link::info(link.as_fd())).map_err(failed())?.map();
    Ok(on.is_some_and(|on| map::info(map.as_fd()).is_ok_and(|info| info.id != on)))
}

/// Takes a pinned link off its hook; one that is not there is fine.
fn drop_link(path: &Path) -> Result<(), KernelError> {
    if let Ok(link) = sys::open_pin(path) {
        detach_now(link);
    }
    bpffs::unpin(path)
}

/// Frees the hook at once where the kernel can: the last reference alone frees it a moment later. The other kinds go with
/// their references.
fn detach_now(link: OwnedFd) {
    let _ = link::detach(link.as_fd());
}

impl Kernel for Host {
    fn programs(&self) -> Result<Vec<String>, KernelError> {
        let mut uids = self.bpffs.programs()?;
        uids.extend(self.filters.programs());
        uids.sort();
        uids.dedup();
        Ok(uids)
    }

    fn observe(&self, uid: &str) -> Result<Observed, KernelError> {
        self.bpffs.check()?;
        let mut observed = observe::observe(&self.bpffs, uid)?;
        for link in self.filters.links(uid) {
            let seen = self.filters.observe(uid, &link)?;
            observed.links.insert(link, seen);
        }
        Ok(observed)
    }

    fn has_changed(&self, uid: &str, seen: &Observed) -> Result<bool, KernelError> {
        self.bpffs.check()?;
        changed::has_changed(&self.bpffs, &self.filters, uid, seen)
    }

    fn load(&self, uid: &str, name: &str, request: &LoadRequest) -> Result<LoadOutcome, KernelError> {
        if self.bpffs.load(uid, name).exists() {
            return self.complete(uid, name, request);
        }
        let made = self.make(uid, name, request);
        if made.is_err() && !request.share.is_empty() {
            // The error that stopped us is the one to tell; a map that is left goes with the next load that does.
            let _ = self.shares.collect(&self.bpffs);
        }
        made
    }

    fn set_gate(&self, uid: &str, load: &str, gate: &str, cgroups: &[u64]) -> Result<(), KernelError> {
        gate::set(self.open_map(uid, load, &gate::map_name(gate))?, cgroups)
    }

    fn attach(&self, uid: &str, name: &str, hook: &Hook, program: &ProgramAt) -> Result<(), KernelError> {
        let map = self.map_of(uid, hook, &program.load)?;
        let program = self.program_fd(uid, program)?;
        if attach::needs_record(hook.kind) {
            return self.filters.attach(uid, name, hook, program.as_fd());
        }
        bpffs::make_dir(&self.bpffs.links(uid))?;
        let link = attach::attach(program.as_fd(), hook, &self.bpffs, map.as_ref().map(AsFd::as_fd))?;
        // Not pinned, the link goes with its descriptor: a failure here leaves nothing.
        pin(&link, &self.bpffs.link(uid, name))
    }

    fn replace(
        &self,
        uid: &str,
        name: &str,
        hook: &Hook,
        old: u32,
        program: &ProgramAt,
    ) -> Result<Option<Duration>, KernelError> {
        let map = self.map_of(uid, hook, &program.load)?;
        let new = self.program_fd(uid, program)?;
        if attach::needs_record(hook.kind) {
            return self.filters.replace(uid, name, hook, old, new.as_fd()).map(|()| None);
        }
        let path = self.bpffs.link(uid, name);
        // A link stays on its map: where the new load has another one, there is nothing to swap in.
        let way = match hook.kind.row().update {
            UpdateWay::Swap if is_on_another(&path, map.as_ref())? => UpdateWay::Beside,
            way => way,
        };
        match way {
            UpdateWay::Swap => {
                let what = || format!("updating {} on {}", hook.kind, hook.target.display());
                let link = sys::open_pin(&path).map_err(KernelError::io(what()))?;
                let old = program::by_id(old).map_err(KernelError::io(what()))?;
                link::replace(link.as_fd(), new.as_fd(), old.as_fd()).map_err(|e| match e.raw_os_error() {
                    Some(libc::ENOLINK) => {
                        KernelError::TargetNotFound { target: hook.target.display(), why: "it disappeared".into() }
                    }
                    _ => KernelError::Io { what: what(), source: e },
                })?;
                Ok(None)
            }
            UpdateWay::Beside | UpdateWay::BesideNeighbour => {
                let staged = PathBuf::from(format!("{}~", path.display()));
                drop_link(&staged)?;
                let left = sys::open_pin(&path);
                let link = attach::attach(new.as_fd(), hook, &self.bpffs, map.as_ref().map(AsFd::as_fd))?;
                pin(&link, &staged)?;
                bpffs::rename(&staged, &path)?;
                if let Ok(left) = left {
                    detach_now(left);
                }
                Ok(None)
            }
            UpdateWay::Gap => {
                let old = program::by_id(old).map_err(KernelError::io("opening the program to replace"))?;
                let start = Instant::now();
                drop_link(&path)?;
                match self.attach_when_free(new.as_fd(), hook) {
                    Ok(link) => {
                        let gap = start.elapsed();
                        pin(&link, &path)?;
                        Ok(Some(gap))
                    }
                    Err(error) => {
                        // What ran before runs again; if it cannot, the next pass finds nothing there.
                        if let Ok(link) = self.attach_when_free(old.as_fd(), hook) {
                            pin(&link, &path)?;
                        }
                        Err(error)
                    }
                }
            }
        }
    }

    fn programs_with(&self, uid: &str, function: &str) -> Result<Vec<u32>, KernelError> {
        functions::programs_with(&self.bpffs, uid, function)
    }

    fn standing(&self, hook: &Hook, link_id: u32) -> Result<Standing, KernelError> {
        order::standing(&self.bpffs, hook, link_id)
    }

    fn detach(&self, uid: &str, name: &str) -> Result<(), KernelError> {
        if self.filters.detach(uid, name)? {
            return Ok(());
        }
        drop_link(&self.bpffs.link(uid, name))
    }

    fn settle(&self, uid: &str, load: &str, keep: &BTreeSet<String>) -> Result<BTreeMap<String, Settled>, KernelError> {
        self.kept(uid).settle(load, keep)
    }

    fn remove_load(&self, uid: &str, name: &str) -> Result<(), KernelError> {
        self.kept(uid).give_back(name)?;
        // The pin is what keeps the entries of a program array, also under programs that still run.
        if observe::has_program_array(&self.bpffs.load(uid, name))? {
            migrate::wait_for_programs()?;
        }
        bpffs::remove_tree(&self.bpffs.load(uid, name))?;
        self.shares.collect(&self.bpffs)
    }

    fn unload(&self, uid: &str, program: &ProgramAt) -> Result<(), KernelError> {
        bpffs::unpin(&self.bpffs.load(uid, &program.load).join("progs").join(escape(&program.pin)))
    }

    fn discard(&self, uid: &str, staged: &str) -> Result<(), KernelError> {
        let Some(base) = staged.strip_suffix('~') else { return Ok(()) };
        bpffs::remove_tree(&self.bpffs.staged_load(uid, base))?;
        self.shares.collect(&self.bpffs)?;
        drop_link(&self.bpffs.links(uid).join(format!("{}~", escape(base))))?;
        bpffs::unpin(&self.bpffs.kept_maps(uid).join(format!("{}~", escape(base))))
    }

    fn remove_program(&self, uid: &str) -> Result<(), KernelError> {
        for link in bpffs::list(&self.bpffs.links(uid))?.into_iter().chain(self.filters.links(uid)) {
            self.detach(uid, &link)?;
        }
        for load in self.bpffs.loads(uid)? {
            remains::release_sockets(&self.bpffs, &self.bpffs.load(uid, &load))?;
        }
        bpffs::remove_tree(&self.bpffs.program(uid))?;
        self.shares.collect(&self.bpffs)
    }

    fn remains(&self, before: &Observed) -> Vec<Remain> {
        remains::remains(before)
    }
}

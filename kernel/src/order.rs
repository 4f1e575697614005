//! The order of programs on a hook: where one goes that asks to stand before or after another of Skep's.
//!
//! Assumptions: tcx and netkit, the kinds so far whose links have an order that can be asked for (Linux 6.6, 6.7).

use std::os::fd::{AsFd, OwnedFd};

use crate::bpffs::{self, Bpffs, escape};
use crate::error::KernelError;
use crate::hook::{Hook, Neighbour, Order, Target};
use crate::netns;
use crate::sys::link::{self, Beside, OnHook, Side};
use crate::sys::{self, program};

/// How a link stands to the neighbour that it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// As asked, or nothing is asked.
    Right,
    /// On the wrong side.
    Wrong,
    /// The neighbour is not on the hook; why.
    Alone(String),
}

/// The neighbour's link on the hook, and the side of it to go to; `None`: at the end.
pub fn place(bpffs: &Bpffs, hook: &Hook) -> Result<Option<(Side, Option<OwnedFd>)>, KernelError> {
    let (side, neighbour) = match &hook.options.order {
        Order::Last => return Ok(None),
        Order::First => return Ok(Some((Side::Before, None))),
        Order::Before(neighbour) => (Side::Before, neighbour),
        Order::After(neighbour) => (Side::After, neighbour),
    };
    if neighbour.uid.is_none() {
        let why = "this node has no such EbpfProgram in the namespace".into();
        return Err(KernelError::TargetNotFound { target: neighbour.to_string(), why });
    }
    let all = on_hook(hook)?;
    let Some(index) = index_of(bpffs, &all, neighbour)? else {
        return Err(KernelError::TargetNotFound { target: neighbour.to_string(), why: absent(hook) });
    };
    let link = link::by_id(all[index].link_id).map_err(KernelError::io(format!("opening the link of {neighbour}")))?;
    Ok(Some((side, Some(link))))
}

/// How the link of a program stands on its hook. Only what is asked of a neighbour is looked at: two that both ask to be
/// first would never come to rest.
pub fn standing(bpffs: &Bpffs, hook: &Hook, link_id: u32) -> Result<Standing, KernelError> {
    let (before, neighbour) = match &hook.options.order {
        Order::First | Order::Last => return Ok(Standing::Right),
        Order::Before(neighbour) => (true, neighbour),
        Order::After(neighbour) => (false, neighbour),
    };
    let all = on_hook(hook)?;
    let Some(own) = all.iter().position(|on| on.link_id == link_id) else { return Ok(Standing::Right) };
    match index_of(bpffs, &all, neighbour)? {
        None => Ok(Standing::Alone(absent(hook))),
        Some(other) if (own < other) == before => Ok(Standing::Right),
        Some(_) => Ok(Standing::Wrong),
    }
}

/// The link, beside another or at the end.
pub fn beside(place: Option<&(Side, Option<OwnedFd>)>) -> Option<Beside<'_>> {
    place.map(|(side, link)| Beside { side: *side, link: link.as_ref().map(AsFd::as_fd) })
}

fn absent(hook: &Hook) -> String {
    format!("its program is not attached to {} in this direction", hook.target.display())
}

fn on_hook(hook: &Hook) -> Result<Vec<OnHook>, KernelError> {
    let Target::Interface { netns, ifindex, name, .. } = &hook.target else { return Ok(Vec::new()) };
    let (index, attach_type) = (*ifindex, hook.attach_type);
    netns::within(Some(netns), || link::on_interface(index, attach_type))
        .map_err(KernelError::io(format!("asking for the programs on interface {name}")))
}

/// Where the neighbour is. While it is updated either revision's program may be there.
fn index_of(bpffs: &Bpffs, all: &[OnHook], neighbour: &Neighbour) -> Result<Option<usize>, KernelError> {
    let Some(uid) = &neighbour.uid else { return Ok(None) };
    let mut programs = Vec::new();
    for load in bpffs.loads(uid)? {
        let dir = bpffs.load(uid, &load).join("progs");
        for pin in bpffs::list(&dir)? {
            if pin.rsplit_once('+').is_some_and(|(function, _)| function == neighbour.function)
                && let Ok(info) = sys::open_pin(&dir.join(escape(&pin))).and_then(|fd| program::info(fd.as_fd()))
            {
                programs.push(info.id);
            }
        }
    }
    Ok(all.iter().position(|on| programs.contains(&on.program_id)))
}

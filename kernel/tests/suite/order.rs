//! The order of tcx programs: before and after another program of Skep's.

use skep_kernel::hook::{Hook, Neighbour, Options, Order};
use skep_kernel::seam::{Kernel, LoadRequest, Standing};
use skep_kernel::sys::link;
use skep_kernel::{KernelError, netns};
use skep_object::kind::{Kind, attach};

use super::fixture::{Fixture, at, hook, object, request};

const FUNCTION: &str = "count_tc";

fn neighbour(uid: &str) -> Neighbour {
    Neighbour { uid: Some(uid.into()), name: format!("program-{uid}"), function: FUNCTION.into() }
}

fn before(uid: &str) -> Order {
    Order::Before(neighbour(uid))
}

fn after(uid: &str) -> Order {
    Order::After(neighbour(uid))
}

struct Tcx {
    f: Fixture,
    plain: Hook,
}

impl Tcx {
    fn new() -> Self {
        let mut f = Fixture::new();
        let plain = hook(Kind::Tcx, attach::TCX_INGRESS, f.lo());
        Self { f, plain }
    }

    fn hook(&self, order: Order) -> Hook {
        Hook { options: Options { order, ..Options::default() }, ..self.plain.clone() }
    }

    fn request(&self, order: Order) -> LoadRequest {
        request(&object("net"), &[(FUNCTION, &self.hook(order))], &[])
    }

    /// Loads and attaches; the kernel's id of the program.
    fn attach(&self, uid: &str, order: Order) -> Result<u32, KernelError> {
        let (hook, request) = (self.hook(order.clone()), self.request(order));
        self.f.host.load(uid, "l1", &request)?;
        let program = at("l1", FUNCTION, &request);
        self.f.host.attach(uid, &hook.link_name(FUNCTION), &hook, &program)?;
        Ok(self.f.host.observe(uid)?.loads["l1"].programs[&program.pin].id)
    }

    fn order(&self) -> Vec<u32> {
        let target = &self.plain.target;
        let skep_kernel::Target::Interface { ifindex, netns, .. } = target else { unreachable!() };
        let all = netns::within(Some(netns), || link::on_interface(*ifindex, attach::TCX_INGRESS)).unwrap();
        all.into_iter().map(|on| on.program_id).collect()
    }

    fn standing(&self, uid: &str, order: Order) -> Standing {
        let hook = self.hook(order);
        let link = self.f.host.observe(uid).unwrap().links[&hook.link_name(FUNCTION)].id;
        self.f.host.standing(&hook, link).unwrap()
    }
}

impl Drop for Tcx {
    fn drop(&mut self) {
        for uid in self.f.host.programs().unwrap_or_default() {
            let _ = self.f.host.remove_program(&uid);
        }
    }
}

#[test]
fn programs_run_in_the_order_that_they_ask_for() {
    let t = Tcx::new();
    let a = t.attach("a", Order::Last).unwrap();
    let b = t.attach("b", before("a")).unwrap();
    let c = t.attach("c", after("b")).unwrap();
    let d = t.attach("d", Order::First).unwrap();
    let e = t.attach("e", Order::Last).unwrap();
    assert_eq!(t.order(), [d, b, c, a, e]);
    for (uid, order) in [("b", before("a")), ("c", after("b")), ("d", Order::First)] {
        assert_eq!(t.standing(uid, order), Standing::Right, "{uid}");
    }

    // A new revision of the neighbour takes its place.
    let second = request(&object("net"), &[(FUNCTION, &t.plain)], &[("step", 2.into())]);
    t.f.host.load("a", "l2", &second).unwrap();
    t.f.host.replace("a", &t.plain.link_name(FUNCTION), &t.plain, a, &at("l2", FUNCTION, &second)).unwrap();
    let a2 = t.order()[3];
    assert_eq!((t.order(), a2 != a), (vec![d, b, c, a2, e], true));
    assert_eq!(t.standing("b", before("a")), Standing::Right, "and is known as what it was");
}

#[test]
fn a_neighbour_that_is_not_on_the_hook_is_not_found() {
    let t = Tcx::new();
    let refused = t.attach("b", before("a")).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "count_tc of EbpfProgram program-a not found: its program is not attached to lo in this direction"
    );
    assert!(matches!(refused, KernelError::TargetNotFound { .. }) && t.order().is_empty());

    // In another network namespace, with the same interface index.
    let other = Tcx::new();
    let elsewhere = Hook { target: other.plain.target.clone(), ..t.plain.clone() };
    let request = t.request(Order::Last);
    t.f.host.load("a", "l1", &request).unwrap();
    t.f.host.attach("a", "elsewhere", &elsewhere, &at("l1", FUNCTION, &request)).unwrap();
    assert!(matches!(t.attach("b", before("a")), Err(KernelError::TargetNotFound { .. })));
}

#[test]
fn a_neighbour_that_went_or_came_back_on_the_wrong_side_is_seen() {
    let t = Tcx::new();
    let a = t.attach("a", Order::Last).unwrap();
    let b = t.attach("b", after("a")).unwrap();
    t.f.host.remove_program("a").unwrap();
    assert!(matches!(t.standing("b", after("a")), Standing::Alone(why) if why.contains("not attached to lo")));
    let again = t.attach("a", Order::Last).unwrap();
    assert_eq!((t.order(), again != a), (vec![b, again], true));
    assert_eq!(t.standing("b", after("a")), Standing::Wrong);
}

#[test]
fn a_program_that_changes_its_place_is_there_all_the_time() {
    let t = Tcx::new();
    let a = t.attach("a", Order::Last).unwrap();
    let old = t.attach("b", after("a")).unwrap();
    // The same load, another place: a copy goes there before the first leaves.
    let new = t.attach("b", before("a")).unwrap();
    assert_eq!(t.order(), [new, a, old]);
    t.f.host.detach("b", &t.hook(after("a")).link_name(FUNCTION)).unwrap();
    assert_eq!(t.order(), [new, a]);
}

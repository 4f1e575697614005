//! What objects leave to the kernel to define.

use std::os::fd::AsFd;

use serde_json::json;
use skep_kernel::hook::{Hook, Target};
use skep_kernel::seam::Kernel;
use skep_kernel::{kallsyms, probe, sys};
use skep_object::kind::{Kind, attach};

use super::fixture::{self, Fixture, at, hook, object, request};
use super::loading::libbpf_tags;

/// It need not be on its hook: it is run on a packet.
fn tc() -> Hook {
    hook(Kind::Tc, attach::TCX_INGRESS, Target::Event("none".into()))
}

/// Loads and runs a function of `externs`, and reads what it found.
fn run(f: &Fixture, function: &str) {
    let request = request(&object("externs"), &[(function, &tc())], &[]);
    f.load("l1", &request);
    let pin = at("l1", function, &request).pin;
    let program = f.host.open_program(&f.uid, "l1", &pin).unwrap();
    sys::program::test_run(program.as_fd(), &[0; 64], 1).unwrap();
}

#[test]
fn the_kernels_configuration_is_what_it_was_built_with() {
    let f = Fixture::new();
    run(&f, "on_config");
    let numbers: Vec<u64> =
        probe::kernel_release().split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    assert_eq!(f.hits("l1", 0) >> 8, numbers[0] << 8 | numbers[1], "LINUX_KERNEL_VERSION");
    // Of all kernels that this runs on.
    let expected = [250, u64::from(b'(') << 8, 1, u64::from(b'y'), 7, 1];
    assert_eq!([1, 2, 3, 4, 5, 6].map(|slot| f.hits("l1", slot)), expected);

    // It is shown as what it is.
    let map = skep_kernel::dump::MapReader::new(f.host.open_map(&f.uid, "l1", ".kconfig").unwrap()).unwrap();
    let value = map.value.decode(&map.lookup(&[0; 4]).unwrap().unwrap());
    assert_eq!(value["CONFIG_HZ"], json!(250), "{value}");
    assert_eq!(value["CONFIG_DEFAULT_HOSTNAME"], json!("(none)"), "{value}");
    assert_eq!(value["CONFIG_BPF_JIT"], json!("TRI_YES"), "{value}");
}

#[test]
fn addresses_of_the_kernel_are_found() {
    let f = Fixture::new();
    run(&f, "on_symbols");
    assert_eq!(f.hits("l1", 9), 1, "weak ones that are not there are null");
    let address = kallsyms::symbols(&["bpf_prog_put"].into()).unwrap()["bpf_prog_put"].address;
    assert_eq!(f.hits("l1", 8), address);
}

#[test]
fn variables_of_the_kernel_are_read() {
    let f = Fixture::new();
    if kallsyms::symbols(&["runqueues"].into()).unwrap().is_empty() {
        println!("SKIPPED: this kernel knows no addresses of variables (CONFIG_KALLSYMS_ALL)");
        return;
    }
    run(&f, "on_variable");
    assert_eq!(f.hits("l1", 11), 1, "the run queue of the second processor");
}

#[test]
fn functions_of_the_kernel_are_called_and_missing_ones_are_not() {
    let f = Fixture::new();
    run(&f, "on_functions");
    let known = kallsyms::symbols(&["bpf_dynptr_from_skb"].into()).unwrap();
    if known.is_empty() {
        println!("this kernel is older than bpf_dynptr_from_skb (Linux 6.4)");
        assert_eq!(f.hits("l1", 12), 98);
    } else {
        assert_eq!(f.hits("l1", 12), 64, "the packet's length");
    }
}

#[test]
fn what_is_not_there_is_named_and_siblings_do_not_mind() {
    let f = Fixture::new();
    for (function, reason, words) in [
        (
            "on_missing_config",
            "KernelUnsupported",
            "extern CONFIG_SKEP_MUST_BE_THERE: this kernel is built without it; declare the extern __weak",
        ),
        (
            "on_missing_function",
            "KernelUnsupported",
            "extern skep_must_be_there: neither this kernel nor a loaded module has such a function",
        ),
        ("on_undeclared", "ObjectInvalid", "it uses the extern undeclared: it is declared without `__ksym`"),
    ] {
        let error = f.host.load(&f.uid, "l1", &request(&object("externs"), &[(function, &tc())], &[])).unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(f.host.observe(&f.uid).unwrap().loads.is_empty());
    }
}

#[test]
fn instructions_are_those_that_libbpf_loads() {
    let f = Fixture::new();
    let tc = tc();
    let hooks = [("on_config", &tc), ("on_symbols", &tc)];
    f.load("l1", &request(&object("externs"), &hooks, &[]));
    let ours = f.host.observe(&f.uid).unwrap().loads["l1"].programs.clone();
    let Some(theirs) = libbpf_tags("externs") else {
        println!("SKIPPED: bpftool is not installed: tags are not compared");
        return;
    };
    assert_eq!(ours.len(), hooks.len());
    for (pin, program) in ours {
        let function = pin.split('+').next().unwrap().to_owned();
        assert_eq!(Some(&program.tag), theirs.get(&function), "{function}");
    }
}

/// The module has types here; machines whose modules are built in have none of them.
fn is_missing(module: &str) -> bool {
    let there = std::path::Path::new("/sys/kernel/btf").join(module).exists();
    if !there {
        assert!(
            std::env::var_os("SKEP_TEST_MUST_FIRE").is_none(),
            "the module {module} is not loaded, or has no types"
        );
        println!("SKIPPED: {module} is no module here");
    }
    !there
}

#[test]
fn functions_of_modules_are_called() {
    if is_missing("nf_conntrack") {
        return;
    }
    let f = Fixture::new();
    run(&f, "on_connection");
    // ENOENT.
    assert_eq!(f.hits("l1", 13), 2, "no such connection");
}

#[test]
fn functions_of_modules_are_traced_until_detached() {
    if is_missing("veth") {
        return;
    }
    let mut f = Fixture::new();
    f.lo();
    assert!(f.link_of_kind("v0", "veth"));
    // Without it packets wait until somebody answers.
    let netns = f.netns_path();
    let netns = netns.file_name().unwrap().to_str().unwrap();
    fixture::run("ip", &["-n", netns, "neigh", "add", "10.77.0.2", "lladdr", "02:00:00:00:00:02", "dev", "v0"]);
    let fentry = hook(Kind::Fentry, 0, Target::Function { name: "veth_xmit".into(), offset: 0 });
    let request = request(&object("externs"), &[("on_module", &fentry)], &[]);
    f.load("l1", &request);
    f.packets_to("10.77.0.2", 1);
    assert_eq!(f.hits("l1", 14), 0, "it is not attached");
    let link = f.attach("l1", "on_module", &request, &fentry);
    f.packets_to("10.77.0.2", 1);
    assert_eq!(f.hits("l1", 14), 1);
    f.host.detach(&f.uid, &link).unwrap();
    let map = skep_kernel::sys::map::Map::new(f.host.open_map(&f.uid, "l1", "hits").unwrap()).unwrap();
    // The kernel lets go a moment later.
    let quiet = (0..100).any(|_| {
        map.update(&14u32.to_ne_bytes(), &0u64.to_ne_bytes(), 0).unwrap();
        f.packets_to("10.77.0.2", 1);
        std::thread::sleep(std::time::Duration::from_millis(20));
        f.hits("l1", 14) == 0
    });
    assert!(quiet, "it runs on, detached");
}

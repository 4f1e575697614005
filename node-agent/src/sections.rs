//! What is attached where a spec does not say: what the object's ELF sections say, as with libbpf.
//!
//! **Guarantees.** Of an object whose sections do not say it, each function that lacks something is named, with the field to
//! fill; nothing of it is attached then.

use std::borrow::Cow;

use serde_json::{Value, json};
use skep_crds::attach::Attach;
use skep_crds::{EbpfProgramSpec, Program};
use skep_object::kind::{Kind, TargetClass};
use skep_object::{Object, ObjectError};

/// The spec with all that its object's sections say. Without `programs`: every function outside of sections that begin with
/// `?`, but for those that a program array has from the start, which are called, not attached.
pub fn completed<'s>(spec: &'s EbpfProgramSpec, object: &Object) -> Result<Cow<'s, EbpfProgramSpec>, ObjectError> {
    if !spec.programs.is_empty() && spec.programs.iter().all(|program| !program.attach.is_empty()) {
        return Ok(Cow::Borrowed(spec));
    }
    let mut spec = spec.clone();
    if spec.programs.is_empty() {
        let called = object.called_functions();
        let own = object.programs().filter(|function| !called.contains(function.name.as_str()));
        let wanted = own.filter(|function| !object.section_of(function).starts_with('?'));
        spec.programs = wanted.map(|function| Program { name: function.name.clone(), attach: Vec::new() }).collect();
        if spec.programs.is_empty() {
            let reason = "it has no function outside of sections that begin with ?; name functions in spec.programs";
            return Err(ObjectError::NotAnObject { reason: reason.into() });
        }
    }
    for program in spec.programs.iter_mut().filter(|program| program.attach.is_empty()) {
        let section = object.section_of(object.program(&program.name)?);
        program.attach = vec![by_section(&program.name, section)?];
    }
    Ok(Cow::Owned(spec))
}

/// The one hook that a section names.
fn by_section(function: &str, section: &str) -> Result<Attach, ObjectError> {
    let refused = |reason: String| ObjectError::Unsupported { function: function.to_owned(), reason };
    let section = section.trim_start_matches('?');
    let (head, rest) = section.split_once('/').unwrap_or((section, ""));
    let Some(kind) = Kind::of_section(section) else {
        let reason =
            format!("its section {section} says nothing of where it goes; give attach for it in spec.programs");
        return Err(refused(reason));
    };
    let options = options(kind, head, rest).ok_or_else(|| {
        let example = example(kind);
        refused(format!(
            "its section {section} does not say where it goes: write spec.programs: [{{name: {function}, attach: [{{{kind}: {example}}}]}}]"
        ))
    })?;
    let mut entry = json!({});
    entry[kind.row().name] = options;
    serde_json::from_value(entry).map_err(|e| refused(format!("its section {section} cannot be read: {e}")))
}

/// What is behind the first `/` as options of the kind; `None`: it takes more than a section can say.
fn options(kind: Kind, head: &str, rest: &str) -> Option<Value> {
    if rest.is_empty() {
        return None;
    }
    let session = head.contains(".session");
    Some(match kind {
        Kind::Tracepoint => {
            let (category, name) = rest.split_once('/')?;
            json!({"category": category, "name": name})
        }
        Kind::RawTracepoint | Kind::BtfTracepoint => json!({"name": rest}),
        Kind::Kprobe => {
            let (function, offset) = place(rest)?;
            with_offset(json!({"function": function}), offset)
        }
        Kind::Kretprobe | Kind::Fentry | Kind::Fexit | Kind::FmodRet => json!({"function": rest}),
        Kind::Lsm => json!({"hook": rest}),
        Kind::KprobeMulti if session => json!({"functions": several(rest), "session": true}),
        Kind::KprobeMulti | Kind::KretprobeMulti => json!({"functions": several(rest)}),
        Kind::Ksyscall | Kind::Kretsyscall => json!({"syscall": rest}),
        Kind::Uprobe | Kind::Uretprobe => {
            let (binary, symbol) = rest.rsplit_once(':')?;
            let (symbol, offset) = place(symbol)?;
            with_offset(json!({"binary": binary, "symbol": symbol}), offset)
        }
        Kind::UprobeMulti | Kind::UretprobeMulti => {
            let (binary, symbols) = rest.rsplit_once(':')?;
            let mut options = json!({"binary": binary, "symbols": several(symbols)});
            if session {
                options["session"] = true.into();
            }
            options
        }
        Kind::Iter => json!({"target": rest}),
        _ => return None,
    })
}

/// `function` or `function+offset`, the offset decimal or with 0x.
fn place(text: &str) -> Option<(&str, u64)> {
    let Some((name, offset)) = text.split_once('+') else { return Some((text, 0)) };
    let offset = match offset.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => offset.parse(),
    };
    Some((name, offset.ok()?))
}

fn with_offset(mut options: Value, offset: u64) -> Value {
    if offset > 0 {
        options["offset"] = offset.into();
    }
    options
}

/// A name, or a pattern.
fn several(text: &str) -> Value {
    if text.contains(['*', '?']) { json!({"pattern": text}) } else { json!({"names": [text]}) }
}

/// What has to be written for a kind, for people.
fn example(kind: Kind) -> &'static str {
    match (kind, kind.row().target) {
        (Kind::Tcx | Kind::Tc, _) => "{interfaces: {primary: true}, direction: Ingress}",
        (Kind::Netkit, _) => "{interfaces: {match: [\"nk*\"]}, sender: Peer}",
        (Kind::CgroupSkb, _) => "{cgroups: {path: /}, direction: Ingress}",
        (Kind::CgroupSockAddr, _) => "{cgroups: {path: /}, hook: Connect4}",
        (Kind::CgroupSock, _) => "{cgroups: {path: /}, hook: Create}",
        (Kind::CgroupSockopt, _) => "{cgroups: {path: /}, hook: Setsockopt}",
        (Kind::LsmCgroup, _) => "{cgroups: {path: /}, hook: socket_bind}",
        (Kind::Netfilter, _) => "{networkNamespaces: {host: true}, family: Ipv4, hook: LocalIn, priority: 10}",
        (Kind::UprobeMulti | Kind::UretprobeMulti, _) => "{binary: libc.so.6, symbols: {pattern: \"malloc*\"}}",
        (Kind::SkSkb, _) => "{map: sockets, hook: Verdict}",
        (Kind::Lsm, _) => "{hook: file_open}",
        (Kind::Freplace, _) => "{ebpfProgram: guard, function: check}",
        (Kind::Tracepoint, _) => "{category: sched, name: sched_switch}",
        (_, TargetClass::Interface) => "{interfaces: {primary: true}}",
        (_, TargetClass::Cgroup) => "{cgroups: {path: /}}",
        (_, TargetClass::NetworkNamespace) => "{networkNamespaces: {host: true}}",
        (_, TargetClass::Event) => "{name: sched_switch}",
        (_, TargetClass::Function) => "{function: tcp_connect}",
        (_, TargetClass::Binary) => "{binary: libc.so.6, symbol: malloc}",
        (_, TargetClass::Cpu) => "{event: CpuClock, frequency: 99}",
        (_, TargetClass::Functions) => "{functions: {pattern: \"tcp_*\"}}",
        (_, TargetClass::Syscall) => "{syscall: openat}",
        (_, TargetClass::SocketMap) => "{map: sockets}",
        (_, TargetClass::Objects) => "{target: task}",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_that_say_where_are_hooks() {
        for (section, expected) in [
            ("tracepoint/sched/sched_switch", json!({"tracepoint": {"category": "sched", "name": "sched_switch"}})),
            (
                "tp/syscalls/sys_enter_openat",
                json!({"tracepoint": {"category": "syscalls", "name": "sys_enter_openat"}}),
            ),
            ("?raw_tp/sys_enter", json!({"rawTracepoint": {"name": "sys_enter"}})),
            ("raw_tp.w/bpf_test_finish", json!({"rawTracepoint": {"name": "bpf_test_finish"}})),
            ("tp_btf/sched_switch", json!({"btfTracepoint": {"name": "sched_switch"}})),
            ("kprobe/tcp_connect", json!({"kprobe": {"function": "tcp_connect"}})),
            ("kprobe/tcp_connect+0x10", json!({"kprobe": {"function": "tcp_connect", "offset": 16}})),
            ("kretprobe/tcp_connect", json!({"kretprobe": {"function": "tcp_connect"}})),
            ("kprobe.multi/tcp_*", json!({"kprobeMulti": {"functions": {"pattern": "tcp_*"}}})),
            (
                "kprobe.session/tcp_close",
                json!({"kprobeMulti": {"functions": {"names": ["tcp_close"]}, "session": true}}),
            ),
            ("kretprobe.multi/tcp_*", json!({"kretprobeMulti": {"functions": {"pattern": "tcp_*"}}})),
            ("ksyscall/openat", json!({"ksyscall": {"syscall": "openat"}})),
            ("fentry.s/do_unlinkat", json!({"fentry": {"function": "do_unlinkat"}})),
            ("fmod_ret/security_file_open", json!({"fmodRet": {"function": "security_file_open"}})),
            ("lsm.s/file_open", json!({"lsm": {"hook": "file_open"}})),
            (
                "uprobe//usr/bin/curl:main+4",
                json!({"uprobe": {"binary": "/usr/bin/curl", "symbol": "main", "offset": 4}}),
            ),
            ("uretprobe.s/libc.so.6:malloc", json!({"uretprobe": {"binary": "libc.so.6", "symbol": "malloc"}})),
            (
                "uprobe.session/libc.so.6:mall*",
                json!({"uprobeMulti": {"binary": "libc.so.6", "symbols": {"pattern": "mall*"}, "session": true}}),
            ),
            ("iter.s/task", json!({"iter": {"target": "task"}})),
        ] {
            let attach = by_section("f", section).unwrap();
            assert_eq!(serde_json::to_value(attach).unwrap(), expected, "{section}");
        }
    }

    /// Each has an example that the API would take.
    #[test]
    fn sections_that_do_not_say_where_name_the_field() {
        for row in &skep_object::kind::KINDS {
            let text = format!("{{{}: {}}}", row.name, example(row.kind));
            let entry: Value = serde_yaml_ng::from_str(&text).unwrap();
            let attach: Attach = serde_json::from_value(entry).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(attach.kind(), row.name);
        }
        for (section, kind) in [
            ("xdp", "xdp"),
            ("xdp.frags", "xdp"),
            ("tc", "tcx"),
            ("tcx/ingress", "tcx"),
            ("netkit/peer", "netkit"),
            ("cgroup_skb/egress", "cgroupSkb"),
            ("cgroup/connect4", "cgroupSockAddr"),
            ("cgroup/dev", "cgroupDevice"),
            ("sockops", "sockOps"),
            ("sk_skb/stream_verdict", "skSkb"),
            ("perf_event", "perfEvent"),
            ("kprobe", "kprobe"),
            ("uprobe/malloc", "uprobe"),
            ("freplace/check", "freplace"),
        ] {
            let said = by_section("f", section).unwrap_err().to_string();
            let start = format!(
                "f: its section {section} does not say where it goes: write spec.programs: [{{name: f, attach: [{{{kind}: {{"
            );
            assert!(said.starts_with(&start), "{said}");
        }
        assert_eq!(
            by_section("f", "mine/own").unwrap_err().to_string(),
            "f: its section mine/own says nothing of where it goes; give attach for it in spec.programs"
        );
    }
}

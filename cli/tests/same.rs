//! `maps dump -o json` beside `bpftool -j map dump`: every type of map, every shape of value, random bytes, padding too.
//! Real binaries, real kernel. Needs root. Also in the virtual machines.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "each test binary uses its part of it")]
mod host;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use host::Host;
use serde_json::{Map as Object, Value, json};
use skep_kernel::sys::map::{self, Map, types};
use skep_kernel::sys::program;

const ON_LO: &str = "    attach:\n    - xdp: {interfaces: {names: [lo]}}\n";

fn ready(host: &Host, name: &str) {
    host.wait(&format!("{name} is ready"), || {
        let output = host.skep(&["get", name, "-o", "json"]);
        serde_json::from_slice::<Value>(&output.stdout).is_ok_and(|p| p["reason"] == "Ready")
    });
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Id and type of each map of a program.
fn maps(host: &Host, program: &str) -> BTreeMap<String, (u32, String)> {
    let all = parsed(&host.out(&["maps", "ls", program, "-o", "json"]));
    let each = all.as_array().unwrap().iter();
    each.map(|map| {
        let id = map["id"].as_u64().unwrap() as u32;
        (map["name"].as_str().unwrap().to_owned(), (id, map["type"].as_str().unwrap().to_owned()))
    })
    .collect()
}

fn open(id: u32) -> Map {
    Map::new(map::by_id(id).unwrap()).unwrap()
}

/// Random bytes under random keys, or everywhere in an array. False for types whose values are not bytes of the writer's.
fn fill(map: &Map, random: &mut fastrand::Rng) -> bool {
    let info = map.info().clone();
    let mut bytes = |len: usize| (0..len).map(|_| random.u8(..)).collect::<Vec<u8>>();
    match info.map_type {
        types::ARRAY | types::PERCPU_ARRAY => {
            for index in 0..info.max_entries {
                map.update(&index.to_ne_bytes(), &bytes(map.value_len()), 0).unwrap();
            }
        }
        types::HASH | types::LRU_HASH | types::PERCPU_HASH | types::LRU_PERCPU_HASH => {
            for _ in 0..(info.max_entries / 4).min(16) {
                map.update(&bytes(info.key_size as usize), &bytes(map.value_len()), 0).unwrap();
            }
        }
        types::LPM_TRIE => {
            for prefix in 1..=8u32 {
                let key = [prefix.to_ne_bytes(), (prefix << 5).to_ne_bytes()].concat();
                map.update(&key, &bytes(map.value_len()), 0).unwrap();
            }
        }
        types::CGROUP_STORAGE | types::PERCPU_CGROUP_STORAGE => {
            // As many as there are attachments: a key is a cgroup and a hook.
            let key = map.next_key(None).unwrap().expect("the program is attached");
            map.update(&key, &bytes(map.value_len()), 0).unwrap();
        }
        types::QUEUE | types::STACK => {
            (0..3).for_each(|_| map.update(&[], &bytes(map.value_len()), 0).unwrap());
        }
        _ => return false,
    }
    true
}

/// Types whose values are the kernel's: sockets, interfaces, programs, maps. What it is given must live as long as it is
/// looked at.
#[derive(Default)]
struct Given {
    sockets: Vec<TcpStream>,
    _listeners: Vec<TcpListener>,
    reuseport: Vec<OwnedFd>,
    fds: Vec<OwnedFd>,
}

impl Given {
    fn sockets() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        // Two that share a port.
        let first = sharing(0);
        let second = sharing(port(&first));
        Given { sockets: vec![near, far], _listeners: vec![listener], reuseport: vec![first, second], fds: Vec::new() }
    }

    fn fill(&mut self, name: &str, map: &Map, all: &BTreeMap<String, (u32, String)>) {
        let key = |number: u32| number.to_ne_bytes();
        match map.info().map_type {
            types::DEVMAP => map.update(&key(3), &1u32.to_ne_bytes(), 0).unwrap(),
            types::DEVMAP_HASH => map.update(&key(70_000), &[1u32.to_ne_bytes(), [0; 4]].concat(), 0).unwrap(),
            types::CPUMAP => map.update(&key(0), &[192u32.to_ne_bytes(), [0; 4]].concat(), 0).unwrap(),
            types::SOCKMAP | types::SOCKHASH => {
                for (index, socket) in self.sockets.iter().enumerate() {
                    map.update(&key(index as u32), &(socket.as_raw_fd() as u64).to_ne_bytes(), 0).unwrap();
                }
            }
            types::HASH_OF_MAPS => {
                let inner = map::by_id(all["inner_a"].0).unwrap();
                map.update(&7u64.to_ne_bytes(), &inner.as_raw_fd().to_ne_bytes(), 0).unwrap();
            }
            types::PROG_ARRAY => {
                // Of the type that the array has since a program refers to it.
                let owner = program::all_ids().unwrap().into_iter().filter_map(|id| program::by_id(id).ok());
                let tried = owner.into_iter().find(|fd| map.update(&key(2), &fd.as_raw_fd().to_ne_bytes(), 0).is_ok());
                self.fds.extend(tried);
            }
            types::REUSEPORT_SOCKARRAY => {
                for (index, socket) in self.reuseport.iter().enumerate() {
                    map.update(&key(index as u32), &(socket.as_raw_fd() as u64).to_ne_bytes(), 0).unwrap();
                }
            }
            types::ARRAY_OF_MAPS => {}
            _ => panic!("nothing is put into {name}"),
        }
    }
}

/// A socket that shares its port (0: any) with others.
fn sharing(port: u16) -> OwnedFd {
    use rustix::net::{AddressFamily, SocketType, bind, listen, socket, sockopt};
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_reuseport(&fd, true).unwrap();
    bind(&fd, &SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    listen(&fd, 1).unwrap();
    fd
}

fn port(socket: &OwnedFd) -> u16 {
    SocketAddr::try_from(rustix::net::getsockname(socket).unwrap()).unwrap().port()
}

/// A cgroup of the test's own.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Self {
        let name = format!("skep-cli-{}", std::process::id());
        let dir = skep_kernel::probe::cgroup2_mount().unwrap().join(name);
        std::fs::create_dir(&dir).unwrap();
        Cgroup(dir)
    }

    fn name(&self) -> &str {
        self.0.file_name().unwrap().to_str().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _removed = std::fs::remove_dir(&self.0);
    }
}

/// What bpftool shows of a map, by the bytes of the key: the value's bytes and, where it has types, what they mean.
fn theirs(id: u32) -> Vec<Value> {
    let output = Command::new("bpftool").args(["-j", "map", "dump", "id", &id.to_string()]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let all = parsed(&text);
    // Places without a value; a key that went is none.
    all.as_array().unwrap().iter().filter(|entry| entry["value"].get("error").is_none()).cloned().collect()
}

fn bytes(list: &Value) -> Vec<u8> {
    let byte = |text: &Value| u8::from_str_radix(text.as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
    list.as_array().unwrap_or_else(|| panic!("no bytes: {list}")).iter().map(byte).collect()
}

/// Variables of network order, addresses and times, of which bpftool knows nothing: golden/shapes.json has them.
const NETWORK_ORDER: [&str; 10] = [
    "ethernet",
    "mapped",
    "network_long",
    "network_word",
    "port",
    "socket_address",
    "tagged",
    "tagged_variable",
    "v4",
    "v6",
];

/// Where bpftool says the same in another way. Each is in docs/decode.md; there are no others.
struct Same {
    /// How often each was needed: one that never is would hide nothing, and is a mistake of this list.
    used: BTreeMap<&'static str, u64>,
}

impl Same {
    fn used(&mut self, rule: &'static str) -> bool {
        *self.used.entry(rule).or_default() += 1;
        true
    }

    fn check(&mut self, at: &str, ours: &Value, theirs: &Value) {
        assert!(self.equal(ours, theirs), "{at}: here {ours}, by bpftool {theirs}");
    }

    fn equal(&mut self, ours: &Value, theirs: &Value) -> bool {
        match (ours, theirs) {
            (Value::Object(ours), Value::Object(theirs)) => {
                let theirs = self.flat(theirs);
                // Network order has names of the kernel's own, and another notation.
                ours.len() == theirs.len()
                    && ours.iter().all(|(name, value)| theirs.get(name).is_some_and(|other| self.equal(value, other)))
            }
            (Value::Array(ours), Value::Array(theirs)) => {
                let empty = |value: &Value| value == &json!({});
                if ours.is_empty() && theirs.iter().all(empty) && !theirs.is_empty() {
                    return self.used("arrays of empty structs");
                }
                ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| self.equal(a, b))
            }
            (Value::String(ours), Value::Array(theirs)) => text(ours, theirs) && self.used("char arrays"),
            (Value::String(ours), Value::String(theirs)) if ours == theirs => true,
            (Value::String(ours), Value::String(theirs)) => {
                wide(ours, theirs) && self.used("__int128") || bit_enum(ours, theirs) && self.used("bit fields")
            }
            (Value::String(ours), Value::Number(theirs)) => {
                let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
                if number(ours).is_some() && number(ours) == theirs.as_u64() {
                    return self.used("pointers");
                }
                ours == "SMALL_B" && theirs.as_i64() == Some(-56) && self.used("enums of one or two bytes")
            }
            (Value::Number(ours), Value::String(theirs)) => bits(ours, theirs) && self.used("bit fields"),
            (Value::Bool(ours), Value::String(theirs)) => {
                theirs == if *ours { "0x1" } else { "0x0" } && self.used("bit fields")
            }
            (Value::Number(ours), Value::Bool(theirs)) => {
                // Neither 0 nor 1.
                ours.as_u64().is_some_and(|n| n > 1) && *theirs && self.used("booleans that are none")
            }
            (Value::Number(ours), Value::Number(theirs)) => {
                ours == theirs
                    || ours.as_u64().is_some_and(|n| n < 256 && theirs.as_i64() == Some((n as i8).into()))
                        && self.used("char alone")
                    || ours.as_u64().is_some_and(|n| {
                        let signed = if n <= u64::from(u32::MAX) { i64::from(n as i32) } else { n as i64 };
                        theirs.as_i64() == Some(signed)
                    }) && self.used("values that an enum has no name for")
            }
            _ => ours == theirs,
        }
    }

    /// Members of anonymous structs and unions are the outer one's.
    fn flat(&mut self, object: &Object<String, Value>) -> Object<String, Value> {
        let mut flat = Object::new();
        for (name, value) in object {
            match value {
                Value::Object(inner) if name.is_empty() => {
                    self.used("anonymous members");
                    flat.extend(self.flat(inner));
                }
                _ => {
                    flat.insert(name.clone(), value.clone());
                }
            }
        }
        flat
    }
}

/// A text up to its NUL, beside a list of numbers.
fn text(ours: &str, theirs: &[Value]) -> bool {
    let all: Option<Vec<u8>> = theirs.iter().map(|n| n.as_i64().map(|n| n as u8)).collect();
    let Some(all) = all else { return false };
    let end = all.iter().position(|byte| *byte == 0).unwrap_or(all.len());
    ours == shown(&all[..end])
}

/// As docs/decode.md has it: what is no UTF-8 as `\xff`, and a backslash that could be taken for one as `\x5c`.
fn shown(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = bytes;
    let is_hex = |bytes: &[u8]| bytes.len() >= 3 && bytes[0] == b'x' && bytes[1..3].iter().all(u8::is_ascii_hexdigit);
    while !rest.is_empty() {
        let len = (1..=4.min(rest.len())).find(|len| std::str::from_utf8(&rest[..*len]).is_ok());
        match len {
            Some(1) if rest[0] == b'\\' && is_hex(&rest[1..]) => text.push_str("\\x5c"),
            Some(len) => text.push_str(std::str::from_utf8(&rest[..len]).unwrap()),
            None => text.push_str(&format!("\\x{:02x}", rest[0])),
        }
        rest = &rest[len.unwrap_or(1)..];
    }
    text
}

/// Decimal with a sign, beside hexadecimal without.
fn wide(ours: &str, theirs: &str) -> bool {
    let Some(theirs) = theirs.strip_prefix("0x").and_then(|hex| u128::from_str_radix(hex, 16).ok()) else {
        return false;
    };
    ours.parse() == Ok(theirs) || ours.parse() == Ok(theirs as i128)
}

/// A bit field of up to 64 bits: hexadecimal without a sign.
fn bits(ours: &serde_json::Number, theirs: &str) -> bool {
    let Some(theirs) = theirs.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok()) else {
        return false;
    };
    let same_below = |width: u32| {
        let mask = u64::MAX >> (64 - width);
        ours.as_i64().is_some_and(|n| n < 0 && n >= -(1 << (width - 1)) && n as u64 & mask == theirs)
    };
    // The one that has a sign is of four bits.
    ours.as_u64() == Some(theirs) || same_below(4)
}

fn bit_enum(ours: &str, theirs: &str) -> bool {
    [("CLOSED", "0x0"), ("OPEN", "0x5")].contains(&(ours, theirs))
}

/// Compares a map's contents; returns how many entries it had.
fn compare(host: &Host, same: &mut Same, program: &str, name: &str, id: u32) -> usize {
    let ours = parsed(&host.out(&["maps", "dump", program, name, "-o", "json"]));
    let ours = ours.as_array().unwrap();
    let raw = host.out(&["maps", "dump", program, name, "-o", "raw"]);
    let raw: Vec<&str> = raw.lines().filter(|line| !line.starts_with(' ')).collect();
    let theirs = theirs(id);
    assert_eq!((ours.len(), raw.len()), (theirs.len(), theirs.len()), "{name}: entries");
    for (row, line) in ours.iter().zip(raw) {
        let mut words = line.split(' ').map(unhex);
        let key = words.next().unwrap();
        let values: Vec<Vec<u8>> = words.collect();
        let entry = theirs.iter().find(|entry| bytes(&entry["key"]) == key);
        let entry = entry.unwrap_or_else(|| panic!("{name}: bpftool has no key {key:?}"));
        let at = format!("{name}[{}]", row["key"]);
        match (entry.get("values"), entry.get("formatted")) {
            (Some(each), formatted) => {
                let each = each.as_array().unwrap();
                assert_eq!(values, each.iter().map(|cpu| bytes(&cpu["value"])).collect::<Vec<_>>(), "{at}: bytes");
                let formatted = formatted.unwrap();
                let of_cpus: Vec<Value> =
                    formatted["values"].as_array().unwrap().iter().map(|cpu| cpu["value"].clone()).collect();
                same.check(&at, &row["key"], &formatted["key"]);
                same.check(&at, &row["value"], &Value::Array(of_cpus));
            }
            (None, formatted) => {
                assert_eq!(values, [bytes(&entry["value"])], "{at}: bytes");
                match formatted {
                    None => {}
                    // A data section is a list of variables, each an object, and its key has no type.
                    Some(formatted) if formatted.get("key").is_none() => {
                        let section = formatted["value"].as_object().unwrap().values().next().unwrap();
                        let variables = section.as_array().unwrap().iter().flat_map(|v| v.as_object().unwrap().clone());
                        let variables: Object<String, Value> = variables.collect();
                        for (variable, value) in
                            variables.into_iter().filter(|(v, _)| !NETWORK_ORDER.contains(&v.as_str()))
                        {
                            same.check(&format!("{at}.{variable}"), &row["value"][&variable], &value);
                        }
                    }
                    Some(formatted) => {
                        same.check(&at, &row["key"], &formatted["key"]);
                        same.check(&at, &row["value"], &formatted["value"]);
                    }
                }
            }
        }
    }
    theirs.len()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.strip_prefix("0x").unwrap_or_default();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn every_type_and_every_shape_is_what_bpftool_shows() {
    let cgroup = Cgroup::new();
    let host = Host::start();
    let stores =
        format!("    attach:\n    - cgroupSkb: {{cgroups: {{path: /{}}}, direction: Egress}}\n", cgroup.name());
    let programs = format!("  - name: pass\n{ON_LO}  - name: stores\n{stores}");
    host.apply("same", "cli/tests/c/same.bpf.c", &programs);
    ready(&host, "same");
    let all = maps(&host, "same");
    let (mut random, mut given) = (fastrand::Rng::with_seed(11), Given::sockets());
    let mut same = Same { used: BTreeMap::new() };
    let mut entries: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, (id, kind)) in &all {
        let map = open(*id);
        if !name.starts_with('.') && !fill(&map, &mut random) {
            given.fill(name, &map, &all);
        }
        if kind == "queue" || kind == "stack" {
            head(&host, &mut same, name, *id);
            entries.insert(name, 1);
            continue;
        }
        let count = compare(&host, &mut same, "same", name, *id);
        assert!(count > 0, "{name}, a {kind}: nothing was compared");
        entries.insert(name, count);
    }
    let shapes = all.keys().filter(|name| name.starts_with("of_")).count();
    let kinds: std::collections::BTreeSet<&String> = all.values().map(|(_, kind)| kind).collect();
    println!("{} types, {shapes} shapes beside the variables of .data: {entries:?}; {:?}", kinds.len(), same.used);
    assert!(shapes >= 30 && kinds.len() >= 20);
    nested(&host, &mut same, &all);
    // Interfaces have names beside their numbers.
    let table = host.out(&["maps", "dump", "same", "a_devmap"]);
    assert!(table.contains("1 (lo)"), "{table}");
    padding_stays_unseen(&host, &all);
    let needed = [
        "__int128",
        "anonymous members",
        "arrays of empty structs",
        "bit fields",
        "booleans that are none",
        "char alone",
        "char arrays",
        "enums of one or two bytes",
        "pointers",
        "values that an enum has no name for",
    ];
    assert_eq!(same.used.keys().copied().collect::<Vec<_>>(), needed, "a difference that is no more, or a new one");
}

/// bpftool lists nothing of a map without keys, but peeks.
fn head(host: &Host, same: &mut Same, name: &str, id: u32) {
    let output = Command::new("bpftool").args(["-j", "map", "peek", "id", &id.to_string()]).output().unwrap();
    let theirs = parsed(std::str::from_utf8(&output.stdout).unwrap());
    // The kernel keeps no types of it, but the object does.
    let typed = parsed(&host.out(&["maps", "dump", "same", name, "-o", "json"]));
    assert_eq!(typed[0]["value"].is_u64(), name == "a_queue", "{typed}");
    assert_eq!(typed[0]["value"]["y"].is_number(), name == "a_stack", "{typed}");
    let raw = host.out(&["maps", "dump", "same", name, "-o", "raw"]);
    assert_eq!(unhex(raw.trim().rsplit(' ').next().unwrap()), bytes(&theirs["value"]), "{name}");
    if let Some(formatted) = theirs.get("formatted") {
        let ours = parsed(&host.out(&["maps", "dump", "same", name, "-o", "json"]));
        same.check(name, &ours[0]["value"], &formatted["value"]);
    }
}

/// What is in inner maps is what bpftool shows of each by its id.
fn nested(host: &Host, same: &mut Same, all: &BTreeMap<String, (u32, String)>) {
    for (outer, key, inner) in [
        ("an_array_of_maps", json!(0), "inner_a"),
        ("an_array_of_maps", json!(2), "inner_b"),
        ("a_hash_of_maps", json!("0x0700000000000000"), "inner_a"),
    ] {
        let ours = parsed(&host.out(&["maps", "dump", "same", outer, "-o", "json"]));
        let row = ours.as_array().unwrap().iter().find(|row| row["key"] == key);
        let value = &row.unwrap_or_else(|| panic!("{outer} has no {key}: {ours}"))["value"];
        assert_eq!(value["id"], all[inner].0, "{outer}");
        let entries = value["entries"].as_array().unwrap();
        let theirs = theirs(all[inner].0);
        assert_eq!(entries.len(), theirs.len(), "{outer}");
        assert!(!entries.is_empty());
        for entry in entries {
            let other = theirs.iter().find(|other| other["formatted"]["key"] == entry["key"]).unwrap();
            same.check(outer, &entry["value"], &other["formatted"]["value"]);
        }
    }
    let table = host.out(&["maps", "dump", "same", "an_array_of_maps"]);
    assert!(table.starts_with("KEY   VALUE   INNER.KEY"), "{table}");
}

/// Only padding changes, and nothing that is shown does.
fn padding_stays_unseen(host: &Host, all: &BTreeMap<String, (u32, String)>) {
    let map = open(all["of_point"].0);
    let shown = |format| host.out(&["maps", "dump", "same", "of_point", "-o", format]);
    let before = ["json", "table", "csv", "yaml"].map(shown);
    for index in 0..map.info().max_entries {
        let mut value = map.lookup(&index.to_ne_bytes()).unwrap().unwrap();
        value[1..4].iter_mut().for_each(|byte| *byte = !*byte);
        map.update(&index.to_ne_bytes(), &value, 0).unwrap();
    }
    assert_eq!(["json", "table", "csv", "yaml"].map(shown), before);
}

/// The same of an object that aya-ebpf made.
#[test]
fn maps_of_aya_are_what_bpftool_shows() {
    let host = Host::start();
    host.apply_object(
        "aya",
        "v1",
        &aya_object(),
        "  - name: count_flows\n    attach:\n    - tcx: {interfaces: {names: [lo]}, direction: Ingress}\n",
    );
    ready(&host, "aya");
    host.packets(20);
    let mut same = Same { used: BTreeMap::new() };
    let all = maps(&host, "aya");
    let mut random = fastrand::Rng::with_seed(12);
    for (name, (id, _)) in &all {
        let counted = compare_addresses(&host, &mut same, name, *id);
        assert!(counted > 0, "{name} is empty");
        if name == "flows" {
            fill(&open(*id), &mut random);
            assert!(compare_addresses(&host, &mut same, name, *id) > counted);
        }
    }
    assert!(all.contains_key("flows"), "{all:?}");
}

/// Addresses are shown as such by their type's name: bpftool has the bytes.
fn compare_addresses(host: &Host, same: &mut Same, name: &str, id: u32) -> usize {
    if name != "flows" {
        return compare(host, same, "aya", name, id);
    }
    let ours = parsed(&host.out(&["maps", "dump", "aya", name, "-o", "json"]));
    let theirs = theirs(id);
    assert_eq!(ours.as_array().unwrap().len(), theirs.len());
    for row in ours.as_array().unwrap() {
        let mut row = row.clone();
        for end in ["source", "destination"] {
            let address: std::net::Ipv4Addr = row["key"][end].as_str().unwrap().parse().unwrap();
            row["key"][end] = json!({"s_addr": address.octets()});
        }
        let found = theirs.iter().find(|other| same.equal(&row["key"], &other["formatted"]["key"]));
        let found = found.unwrap_or_else(|| panic!("bpftool has no {}", row["key"]));
        same.check(name, &row["value"], &found["formatted"]["value"]);
    }
    theirs.len()
}

fn aya_object() -> Vec<u8> {
    if let Some(dir) = std::env::var_os("SKEP_TEST_OBJECTS") {
        return std::fs::read(Path::new(&dir).join("tcx-flows.o")).unwrap();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let object: PathBuf = root.join("target/bpf/tcx-flows.o");
    if !object.is_file() {
        let status = Command::new(env!("CARGO")).current_dir(root).args(["xtask", "build", "--only", "ebpf"]).status();
        assert!(status.unwrap().success());
    }
    std::fs::read(object).unwrap()
}

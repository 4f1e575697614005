//! The kernel's configuration, as the values of an object's `.kconfig` externs.
//!
//! **Guarantees.** A value is what the kernel was built with, or zero where the object can do without (`__weak`); never a
//! guess.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};

use skep_object::externs::{ConfigValue, Extern, Form, What};

use crate::error::KernelError;
use crate::{kallsyms, probe, sys};

/// Largest configuration read, in bytes: distributions have a quarter of a megabyte.
const MAX_CONFIG: u64 = 16 << 20;

/// Puts the values of these externs into the bytes of their map.
pub fn fill<'e>(externs: impl Iterator<Item = &'e Extern>, bytes: &mut [u8]) -> Result<(), KernelError> {
    let mut config = None;
    for of in externs {
        let What::Config(value) = &of.what else { continue };
        let missing = |why: String| KernelError::KernelUnsupported { what: format!("extern {}", of.name), why };
        let text = if of.name.starts_with("CONFIG_") {
            let config = config.get_or_insert_with(read);
            match config {
                Ok(options) => options.get(&of.name).cloned(),
                Err(_) if of.weak => None,
                Err(why) => return Err(missing(why.clone())),
            }
        } else {
            about_kernel(&of.name)
        };
        match text {
            Some(text) => {
                let encoded =
                    encode(value, &text).map_err(|why| missing(format!("this kernel has {text} there, and {why}")))?;
                let at = value.offset as usize;
                if let Some(place) = bytes.get_mut(at..at + encoded.len()) {
                    place.copy_from_slice(&encoded);
                }
            }
            None if of.weak => {}
            None => {
                let why = "this kernel is built without it; declare the extern __weak if the program can do without";
                return Err(missing(why.into()));
            }
        }
    }
    Ok(())
}

/// What is no option of the build: libbpf's virtual externs.
fn about_kernel(name: &str) -> Option<String> {
    let yes_or_no = |is: bool| if is { "y" } else { "n" }.to_owned();
    match name {
        "LINUX_KERNEL_VERSION" => Some(version(&probe::kernel_release(), &probe::kernel_build()).to_string()),
        // bpf_get_attach_cookie came with it.
        "LINUX_HAS_BPF_COOKIE" => Some(yes_or_no(sys::program::knows_helper(TRACEPOINT, GET_ATTACH_COOKIE))),
        "LINUX_HAS_SYSCALL_WRAPPER" => {
            let names: Vec<String> = ["x64", "arm64", "s390x", "riscv"].map(|a| format!("__{a}_sys_bpf")).into();
            Some(yes_or_no(kallsyms::present(&names).is_ok_and(|found| !found.is_empty())))
        }
        _ => None,
    }
}

/// BPF_PROG_TYPE_TRACEPOINT and BPF_FUNC_get_attach_cookie (include/uapi/linux/bpf.h).
const TRACEPOINT: u32 = 5;
const GET_ATTACH_COOKIE: i32 = 174;

/// KERNEL_VERSION() of a release. Debian's release is that of its ABI, and its build (`uname -v`) names the version.
fn version(release: &str, build: &str) -> u32 {
    let of = |text: &str| -> Option<u32> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        // KERNEL_VERSION() has eight bits for it.
        let patch = numbers.next().and_then(Result::ok).unwrap_or(0).min(255);
        Some(major << 16 | minor << 8 | patch)
    };
    let debian = build.split_once("Debian ").and_then(|(_, version)| of(version));
    debian.or_else(|| of(release)).unwrap_or(0)
}

/// All options that are set.
fn read() -> Result<BTreeMap<String, String>, String> {
    let release = probe::kernel_release();
    let beside = [
        format!("/boot/config-{release}"),
        format!("/lib/modules/{release}/config"),
        format!("/usr/lib/modules/{release}/config"),
    ];
    // In a container the host's files are at the root of its first process.
    let of_host: Vec<String> = beside.iter().map(|path| format!("/proc/1/root{path}")).collect();
    if let Ok(file) = std::fs::File::open("/proc/config.gz") {
        return options(flate2::read::GzDecoder::new(file)).map_err(|e| format!("/proc/config.gz: {e}"));
    }
    match beside.iter().chain(&of_host).find_map(|path| std::fs::File::open(path).ok()) {
        Some(file) => options(file).map_err(|e| format!("reading the kernel's configuration: {e}")),
        None => Err(format!(
            "the kernel's configuration is neither in /proc/config.gz (CONFIG_IKCONFIG_PROC) nor in {}",
            beside.join(", ")
        )),
    }
}

fn options(file: impl Read) -> io::Result<BTreeMap<String, String>> {
    let lines = BufReader::new(file.take(MAX_CONFIG)).lines();
    let option = |line: io::Result<String>| match line {
        // What is not set is a comment.
        Ok(line) if line.starts_with("CONFIG_") => {
            line.split_once('=').map(|(name, value)| Ok((name.to_owned(), value.trim_end().to_owned())))
        }
        Ok(_) => None,
        Err(e) => Some(Err(e)),
    };
    lines.filter_map(option).collect()
}

/// An option's text as the object expects it; what does not fit is refused, but for text, which is cut.
fn encode(value: &ConfigValue, text: &str) -> Result<Vec<u8>, String> {
    let size = value.size as usize;
    let number = |number: i128| number.to_le_bytes()[..size.min(16)].to_vec();
    if let (Form::Text, Some(text)) = (value.form, text.strip_prefix('"').and_then(|text| text.strip_suffix('"'))) {
        let mut bytes = text.as_bytes()[..text.len().min(size - 1)].to_vec();
        bytes.resize(size, 0);
        return Ok(bytes);
    }
    match (value.form, text) {
        (Form::Bool, "y") | (Form::Tristate, "y") => Ok(number(1)),
        (Form::Bool, "n") | (Form::Tristate, "n") => Ok(number(0)),
        (Form::Tristate, "m") => Ok(number(2)),
        (Form::Char, "y" | "n" | "m") => Ok(text.as_bytes().to_vec()),
        (Form::Char, _) => integer(text, size, false).map(number),
        (Form::Integer { signed }, _) => integer(text, size, signed).map(number),
        (Form::Bool, "m") => Err("a bool cannot hold it; declare an enum libbpf_tristate".into()),
        (Form::Bool | Form::Tristate, _) => Err("it is declared as a bool or a tristate".into()),
        (Form::Text, _) => Err("it is declared as an array of char".into()),
    }
}

fn integer(text: &str, size: usize, signed: bool) -> Result<i128, String> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let parsed = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => i128::from_str_radix(digits, 16),
        None => digits.parse(),
    };
    let number = parsed.map_err(|_| "it is declared as a number".to_owned())?;
    let number = if negative { -number } else { number };
    let bits = 8 * size as u32;
    // As libbpf has it, a signed value may be written as the unsigned one of the same bits in eight bytes only.
    let range = if signed && bits < 64 {
        -(1i128 << (bits - 1))..1i128 << (bits - 1)
    } else if signed {
        -(1i128 << 63)..1i128 << 64
    } else {
        0..1i128 << bits
    };
    if range.contains(&number) { Ok(number) } else { Err(format!("{bits} bits are too few for it")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(form: Form, size: u32) -> ConfigValue {
        ConfigValue::new(form, size)
    }

    #[test]
    fn options_become_what_the_object_declares() {
        let of = |form, size, text: &str| encode(&value(form, size), text);
        assert_eq!(of(Form::Bool, 1, "y"), Ok(vec![1]));
        assert_eq!(of(Form::Tristate, 4, "m"), Ok(vec![2, 0, 0, 0]));
        assert_eq!(of(Form::Char, 1, "m"), Ok(vec![b'm']));
        assert_eq!(of(Form::Integer { signed: false }, 4, "1000"), Ok(1000u32.to_le_bytes().to_vec()));
        assert_eq!(
            of(Form::Integer { signed: false }, 8, "0xffffffff00000000"),
            Ok(vec![0, 0, 0, 0, 255, 255, 255, 255])
        );
        assert_eq!(of(Form::Integer { signed: true }, 2, "-2"), Ok(vec![254, 255]));
        assert_eq!(of(Form::Text, 8, "\"(none)\""), Ok(b"(none)\0\0".to_vec()));
        assert_eq!(of(Form::Text, 4, "\"(none)\""), Ok(b"(no\0".to_vec()));
        for (form, size, text) in [
            (Form::Bool, 1, "m"),
            (Form::Bool, 1, "1000"),
            (Form::Integer { signed: false }, 4, "y"),
            (Form::Integer { signed: false }, 2, "65536"),
            (Form::Integer { signed: false }, 2, "-1"),
            (Form::Integer { signed: true }, 1, "128"),
            (Form::Text, 8, "12"),
            (Form::Integer { signed: true }, 4, "\"12\""),
        ] {
            assert!(of(form, size, text).is_err(), "{form:?} {text}");
        }
    }

    #[test]
    fn options_that_are_not_set_are_not_there() {
        let text = "# comment\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"a=b\"\n";
        let found = options(text.as_bytes()).unwrap();
        let expected = [("CONFIG_A", "y"), ("CONFIG_C", "\"a=b\"")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(found, expected.into_iter().collect());
    }

    #[test]
    fn versions_of_debian_are_in_their_build() {
        assert_eq!(version("6.18.44-fc", "#1 SMP"), 6 << 16 | 18 << 8 | 44);
        assert_eq!(version("5.10.0-33-amd64", "#1 SMP Debian 5.10.226-1 (2024-10-03)"), 5 << 16 | 10 << 8 | 226);
        assert_eq!(version("4.9.337", ""), 4 << 16 | 9 << 8 | 255);
        assert_eq!(version("6.1-rc1", ""), 6 << 16 | 1 << 8);
    }
}

//! Hooks on many functions at once, by one link each: in the kernel and in user space.

use kube::KubeSchema;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};

use crate::selector::PodSelector;
use crate::union::exactly_one;

/// Kernel functions.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct KprobeMulti {
    /// The functions.
    pub functions: KernelFunctions,
    /// `true`: the program runs at the entry and at the return, as a session: what it returns at the entry (0 or 1) says
    /// whether it is to see the return. Linux 6.11 or newer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<bool>,
}

/// Kernel functions, as they return.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct KretprobeMulti {
    /// The functions.
    pub functions: KernelFunctions,
}

/// Selects kernel functions: exactly one of `names` and `pattern`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = functions)]
pub enum KernelFunctions {
    /// By name: `[tcp_connect, tcp_close]`; one that the kernel does not have is `TargetNotFound`, and none is attached.
    /// 1 to 512.
    Names(KernelNames),
    /// By pattern: `tcp_*`; `*` stands for any characters, `?` for one. Of those that the kernel lists as traceable when it
    /// is attached: what a module brings later is not among them.
    Pattern(FunctionPattern),
}

/// Names of kernel functions.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[schemars(extend("x-kubernetes-list-type" = "set"))]
pub struct KernelNames(#[schemars(length(min = 1, max = 512))] pub Vec<KernelName>);

/// A function's name in the kernel, or in a loaded module.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct KernelName(
    #[schemars(length(min = 1, max = 127), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_.]*$"))] pub String,
);

/// A pattern of function names.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct FunctionPattern(#[schemars(length(min = 1, max = 127), regex(pattern = r"^[A-Za-z0-9_.*?]+$"))] pub String);

/// Functions of a binary or library.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct UprobeMulti {
    /// The binary: an absolute path (`/usr/bin/curl`), or a library's file name (`libssl.so.3`), found as the dynamic
    /// linker finds it. With `pods`, looked up inside each selected container; otherwise on the node.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new("self.startsWith('/') ? !self.matches('(^|/)[.][.](/|$)') : self.matches('^[A-Za-z0-9_+.-]+$')").message("binary is an absolute path without .., such as /usr/bin/curl, or a library's file name, such as libc.so.6"))]
    pub binary: String,
    /// The functions.
    pub symbols: Symbols,
    /// `true`: the program runs at the entry and at the return, as a session: what it returns at the entry (0 or 1) says
    /// whether it is to see the return. Linux 6.13 or newer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<bool>,
    /// Only the processes of the selected pods' containers. Absent: every process of the node that runs the binary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodSelector>,
}

/// Functions of a binary or library, as they return.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct UretprobeMulti {
    /// The binary: an absolute path (`/usr/bin/curl`), or a library's file name (`libssl.so.3`), found as the dynamic
    /// linker finds it. With `pods`, looked up inside each selected container; otherwise on the node.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new("self.startsWith('/') ? !self.matches('(^|/)[.][.](/|$)') : self.matches('^[A-Za-z0-9_+.-]+$')").message("binary is an absolute path without .., such as /usr/bin/curl, or a library's file name, such as libc.so.6"))]
    pub binary: String,
    /// The functions.
    pub symbols: Symbols,
    /// Only the processes of the selected pods' containers. Absent: every process of the node that runs the binary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodSelector>,
}

/// Selects functions of a binary: exactly one of `names` and `pattern`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = symbols)]
pub enum Symbols {
    /// By symbol: `[SSL_read, SSL_write]`; one that the binary does not have is `TargetNotFound`, and none is attached.
    /// 1 to 512.
    Names(SymbolNames),
    /// By pattern: `SSL_*`; `*` stands for any characters, `?` for one.
    Pattern(SymbolPattern),
}

/// Symbols of a binary.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[schemars(extend("x-kubernetes-list-type" = "set"))]
pub struct SymbolNames(#[schemars(length(min = 1, max = 512))] pub Vec<Symbol>);

/// A symbol of a binary.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Symbol(#[schemars(length(min = 1, max = 512), regex(pattern = r"^\S+$"))] pub String);

/// A pattern of symbols.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct SymbolPattern(#[schemars(length(min = 1, max = 512), regex(pattern = r"^\S+$"))] pub String);

fn functions(schema: &mut Schema) {
    exactly_one(schema, "give exactly one of names, such as [tcp_connect], and pattern, such as tcp_*");
}

fn symbols(schema: &mut Schema) {
    exactly_one(schema, "give exactly one of names, such as [SSL_read], and pattern, such as SSL_*");
}

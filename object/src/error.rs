//! What can be wrong with an object, in words for the person who built it.

/// Why an object, or what is asked of it, is refused. [`ObjectError::reason`] is the word that status, Events and
/// metrics use.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("the image's bytecode is not a loadable eBPF object: {reason}")]
    NotAnObject { reason: String },
    #[error("the eBPF object is malformed: {reason}")]
    Malformed { reason: String },
    #[error("the eBPF object's BTF is malformed: {reason}")]
    BadBtf { reason: String },
    #[error("map {map}: {reason}")]
    BadMap { map: String, reason: String },
    #[error("{function}: {reason}")]
    Unsupported { function: String, reason: String },
    #[error("the object has no program {name}; it has {}", list(.available))]
    ProgramUnknown { name: String, available: Vec<String> },
    #[error("global {name}: {reason}")]
    GlobalInvalid { name: String, reason: String },
    #[error("the object has no map {name}; it has {}", list(.available))]
    MapUnknown { name: String, available: Vec<String> },
    #[error("{function}: CO-RE relocation failed: {reason}")]
    CoreRelocation { function: String, reason: String },
}

impl ObjectError {
    /// The reason out of Skep's closed list.
    pub fn reason(&self) -> &'static str {
        match self {
            ObjectError::NotAnObject { .. }
            | ObjectError::Malformed { .. }
            | ObjectError::BadBtf { .. }
            | ObjectError::BadMap { .. }
            | ObjectError::Unsupported { .. } => "ObjectInvalid",
            ObjectError::ProgramUnknown { .. } => "ProgramUnknown",
            ObjectError::GlobalInvalid { .. } => "GlobalInvalid",
            ObjectError::MapUnknown { .. } => "MapIncompatible",
            ObjectError::CoreRelocation { .. } => "KernelUnsupported",
        }
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

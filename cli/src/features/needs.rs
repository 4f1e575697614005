//! What a program, or an object, needs of a kernel.

use serde::Serialize;
use skep_crds::EbpfProgramSpec;
use skep_object::Object;
use skep_object::kind::{KINDS, Kind};

use super::NodeFeatures;

/// What the functions need.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Needs {
    functions: Vec<Function>,
    /// The kernel's types: CO-RE, kernel functions and variables.
    types: bool,
    /// What could not be found out.
    pub remarks: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
struct Function {
    name: String,
    /// One of them is enough: a section does not always tell.
    kinds: Vec<&'static str>,
}

/// What a node lacks.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Missing {
    /// Empty: all of them need it.
    pub function: String,
    /// A kind of hook, or `btf`.
    pub needs: String,
    pub reason: String,
}

impl Needs {
    /// Of every function outside of sections that begin with `?`, by its section.
    pub fn of_object(object: &Object) -> Self {
        let called = object.called_functions();
        let own = object.programs().filter(|function| !called.contains(function.name.as_str()));
        let wanted = own.filter(|function| !object.section_of(function).starts_with('?'));
        let names: Vec<String> = wanted.map(|function| function.name.clone()).collect();
        let mut needs = Needs { types: object.wants_types(), ..Needs::default() };
        names.iter().for_each(|name| needs.by_section(object, name));
        needs
    }

    /// Of a spec, and of the object where the spec leaves it to that.
    pub fn of_spec(spec: &EbpfProgramSpec, object: Option<&Object>) -> Self {
        let mut needs = match object {
            Some(object) if spec.programs.is_empty() => return Needs::of_object(object),
            Some(object) => Needs { types: object.wants_types(), ..Needs::default() },
            None => Needs::default(),
        };
        for program in &spec.programs {
            for attach in &program.attach {
                needs.functions.push(Function { name: program.name.clone(), kinds: vec![attach.kind()] });
            }
            if let (true, Some(object)) = (program.attach.is_empty(), object) {
                needs.by_section(object, &program.name);
            }
        }
        needs
    }

    fn by_section(&mut self, object: &Object, name: &str) {
        let Ok(function) = object.program(name) else {
            self.remarks.push(format!("{name}: the object has no such function"));
            return;
        };
        let section = object.section_of(function).trim_start_matches('?');
        match Kind::of_section(section) {
            Some(kind) => {
                let head = section.split('/').next().unwrap_or_default();
                // `tc` goes on tcx, tc and netkit alike; below cgroup/ the hook decides.
                let alike = KINDS.iter().filter(|row| row.sections.contains(&head) && head != "cgroup");
                let alike = alike.filter(|row| row.program_type == kind.row().program_type && row.kind != kind);
                let kinds = std::iter::once(kind.row()).chain(alike).map(|row| row.name).collect();
                self.functions.push(Function { name: name.to_owned(), kinds });
            }
            None => self.remarks.push(format!("{name}: its section {section} does not say what kind it is")),
        }
    }

    /// What of it a node lacks.
    pub fn missing(&self, node: &NodeFeatures) -> Vec<Missing> {
        let types = (self.types && !node.btf).then(|| Missing {
            function: String::new(),
            needs: "btf".into(),
            reason:
                "it is relocated by the kernel's types (CO-RE), and this kernel is built without CONFIG_DEBUG_INFO_BTF"
                    .into(),
        });
        let functions = self.functions.iter().filter_map(|function| {
            let refusals: Result<Vec<String>, ()> =
                function.kinds.iter().map(|kind| node.support(kind).err().ok_or(())).collect();
            // One that is supported is enough.
            let reason = refusals.ok()?.into_iter().next()?;
            Some(Missing { function: function.name.clone(), needs: function.kinds.join(" or "), reason })
        });
        types.into_iter().chain(functions).collect()
    }
}

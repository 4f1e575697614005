//! Global variables of an object, set from JSON and checked against the object's BTF.

use serde_json::Value;

use crate::Object;
use crate::btf::desc::TypeDesc;
pub use crate::btf::encode::encode;
use crate::btf::encode::encode_partial;
use crate::btf::{Btf, Kind};
use crate::error::ObjectError;
use crate::externs::CONFIG_MAP;
use crate::map::{self, MapDef};

impl Object {
    /// Sets global variables: the returned definitions replace [`Object::maps`]. What a value does not name is zero.
    pub fn with_globals<'v>(
        &self,
        values: impl IntoIterator<Item = (&'v String, &'v Value)>,
    ) -> Result<Vec<MapDef>, ObjectError> {
        let mut maps = self.maps.clone();
        for (name, value) in values {
            let invalid = |reason: String| ObjectError::GlobalInvalid { name: name.clone(), reason };
            let Some(btf) = &self.btf else {
                return Err(invalid(
                    "the object has no type information; build it with -g (Rust: debuginfo=2, --btf)".into(),
                ));
            };
            let symbol = self.elf.symbols.iter().find(|s| {
                s.is_object()
                    && s.name == *name
                    && s.section.is_some_and(|i| map::is_data_section(&self.elf.sections[i].name))
            });
            let Some((symbol, section)) = symbol.and_then(|s| Some((s, s.section?))) else {
                let known = self.variables().join(", ");
                let known = if known.is_empty() { "none".to_owned() } else { known };
                return Err(invalid(format!("the object has no such global variable; it has {known}")));
            };
            let var = self
                .variable(btf, section, name)
                .ok_or_else(|| invalid("its type is not in the object's BTF".into()))?;
            survives(value).map_err(invalid)?;
            let bytes = encode_partial(&TypeDesc::of(btf, var), value).map_err(|e| invalid(e.to_string()))?;
            let map = maps.iter_mut().find(|m| m.section == section && m.data.is_some());
            let slot = map.and_then(|m| m.data.as_mut()).and_then(|d| {
                let at = symbol.value as usize;
                d.bytes.get_mut(at..at + bytes.len()).filter(|_| bytes.len() as u64 == symbol.size)
            });
            slot.ok_or_else(|| invalid(format!("its type has {} bytes, its symbol {}", bytes.len(), symbol.size)))?
                .copy_from_slice(&bytes);
        }
        Ok(maps)
    }

    fn variable(&self, btf: &Btf, section: usize, name: &str) -> Option<u32> {
        let datasec = btf.find(&self.elf.sections[section].name, Kind::Datasec)?;
        btf.section_vars(datasec).into_iter().map(|v| v.type_id).find(|id| btf.name(*id) == name)
    }

    /// Names of the global variables, where the object has types.
    pub fn variables(&self) -> Vec<&str> {
        let Some(btf) = &self.btf else { return Vec::new() };
        let datasecs = btf.by_name(Kind::Datasec);
        self.maps
            .iter()
            .filter(|m| m.data.is_some() && m.name != CONFIG_MAP)
            .filter_map(|m| datasecs.get(m.name.as_str()).copied())
            .flat_map(|d| btf.section_vars(d))
            .map(|v| btf.name(v.type_id))
            .collect()
    }
}

/// The API server stores a number of 2^63 or more as a float: what arrives is no longer what was written.
fn survives(value: &Value) -> Result<(), String> {
    match value {
        Value::Number(n) if n.is_u64() && !n.is_i64() => {
            Err(format!("{n} does not survive JSON; write it as a string, \"{n}\""))
        }
        Value::Array(items) => items.iter().try_for_each(survives),
        Value::Object(members) => members.values().try_for_each(survives),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_that_the_api_server_rounds_are_refused() {
        for lost in [json!(u64::MAX), json!({"a": [1, 1u64 << 63]})] {
            let error = survives(&lost).unwrap_err();
            assert!(error.contains("write it as a string"), "{error}");
        }
        assert_eq!(survives(&json!({"a": [i64::MAX, i64::MIN, "18446744073709551615"]})), Ok(()));
    }
}

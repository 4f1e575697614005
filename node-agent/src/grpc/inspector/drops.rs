//! Records that a ring buffer had no room for, where the program counts them: in a global variable, or in a map.

use skep_crds::Reason;
use skep_kernel::dump::MapReader;
use skep_object::btf::desc::{TypeDesc, TypeKind};
use skep_proto::v1::ProgramReport;
use tonic::{Code, Status};

use super::{InspectorService, failed, open_map};
use crate::grpc::refuse;
use crate::images::blocking;
use crate::spec;

/// Entries of a map that are added up at most: a counter is looked at every second.
const ENTRIES: usize = 4096;

/// A counter that a program keeps.
#[derive(Debug)]
pub struct Drops {
    reader: MapReader,
    /// Its integers: offset and bytes.
    integers: Vec<(usize, usize)>,
}

impl InspectorService {
    /// The counter that the spec names for a map; `None` where it names none.
    pub(super) async fn drops(&self, report: &ProgramReport, map: &str) -> Result<Option<Drops>, Status> {
        let (service, uid) = (self.clone(), report.uid.clone());
        let record = blocking(move || service.shared.store.get(&uid)).await.map_err(failed)?.map_err(failed)?;
        let Some(desired) = record else { return Ok(None) };
        // One that cannot be read is told of in the report.
        let Ok(spec) = spec::decode(&desired.api_version, &desired.spec) else { return Ok(None) };
        let options = spec.maps.as_ref().and_then(|maps| maps.get(map));
        let Some(counter) = options.and_then(|options| options.drop_counter.clone()) else { return Ok(None) };
        let (service, report, map) = (self.clone(), report.clone(), map.to_owned());
        blocking(move || find(&service, &report, &map, &counter)).await.map_err(failed)?.map(Some)
    }
}

fn find(service: &InspectorService, report: &ProgramReport, map: &str, counter: &str) -> Result<Drops, Status> {
    let open = |name: &str, id: u32| open_map(&service.host, &service.types, &report.uid, name, id);
    let unusable = |why: &str| {
        let message = format!("map {map}: dropCounter {counter}: {why}");
        refuse(Code::FailedPrecondition, Reason::ObjectInvalid, message)
    };
    if let Some(known) = report.maps.iter().find(|map| map.name == counter) {
        let reader = open(&known.name, known.id)?;
        let mut integers = Vec::new();
        integers_of(&reader.value, 0, &mut integers);
        if integers.is_empty() {
            return Err(unusable("the map's values have no integers"));
        }
        return Ok(Drops { reader, integers });
    }
    // Data sections are called after their section.
    for section in report.maps.iter().filter(|map| map.name.starts_with('.')) {
        let reader = open(&section.name, section.id)?;
        let fields = reader.value.members().unwrap_or_default();
        if let Some(field) = fields.iter().find(|field| field.name == counter) {
            let mut integers = Vec::new();
            integers_of(&field.desc, field.bit_offset as usize / 8, &mut integers);
            if integers.is_empty() {
                return Err(unusable("the variable is no integer"));
            }
            return Ok(Drops { reader, integers });
        }
    }
    Err(unusable("the functions that are loaded have no such map and no such global variable"))
}

fn integers_of(desc: &TypeDesc, at: usize, found: &mut Vec<(usize, usize)>) {
    match &desc.kind {
        TypeKind::Uint | TypeKind::Int => found.push((at, desc.size as usize)),
        TypeKind::Struct(fields) => {
            for field in fields.iter().filter(|field| field.bit_size == 0) {
                integers_of(&field.desc, at + field.bit_offset as usize / 8, found);
            }
        }
        TypeKind::Array { element, count } => {
            (0..*count as usize).for_each(|index| integers_of(element, at + index * element.size as usize, found));
        }
        _ => {}
    }
}

impl Drops {
    /// What is counted by now. Blocks.
    pub fn count(&self) -> std::io::Result<u64> {
        let (mut sum, mut entries) = (0u64, 0);
        let len = self.reader.entry_len().max(1);
        self.reader.read(|_, values| {
            for entry in values.chunks_exact(len) {
                for value in self.reader.values_of(entry) {
                    let each = self.integers.iter().filter_map(|(at, size)| value.get(*at..at + size));
                    sum = each.fold(sum, |sum, bytes| sum.wrapping_add(number(bytes)));
                }
                entries += 1;
            }
            entries < ENTRIES
        })?;
        Ok(sum)
    }
}

/// A little-endian integer; of longer ones the lower eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

//! What the bytes of maps mean where the kernel does not keep it: queues, stacks, maps of maps and others are made without a
//! description, which the object has.

use skep_image::Auth;
use skep_kernel::dump::Said;
use skep_object::btf::desc::TypeDesc;
use skep_proto::v1::ProgramReport;
use tonic::Status;

use super::{InspectorService, failed, open_map};
use crate::images::blocking;
use crate::spec;

impl InspectorService {
    /// Looks at a map for the first time.
    pub(super) async fn learn(&self, report: &ProgramReport, map: &str, id: u32) -> Result<(), Status> {
        let (host, types) = (self.host.clone(), self.types.clone());
        let (uid, name) = (report.uid.clone(), map.to_owned());
        let opened = blocking(move || open_map(&host, &types, &uid, &name, id));
        let reader = opened.await.map_err(failed)??;
        if !reader.is_untyped() {
            return Ok(());
        }
        // Without an object bytes are bytes.
        let Some(said) = self.said(report, map).await else { return Ok(()) };
        self.types.learn(reader.info(), said).map_err(failed)
    }

    /// What the object of the revision that runs says. Nothing is fetched: the image is in the node's cache, or not.
    async fn said(&self, report: &ProgramReport, map: &str) -> Option<Said> {
        let (store, uid) = (self.shared.clone(), report.uid.clone());
        let record = blocking(move || store.store.get(&uid)).await.ok()?.ok()??;
        let runs = match record.older {
            Some(older) if older.revision == report.running_revision => *older,
            _ => record,
        };
        let spec = spec::decode(&runs.api_version, &runs.spec).ok()?;
        let image = self.shared.images.object(&spec.image.reference, &runs.digest, &Auth::Anonymous, false);
        let object = image.await.ok()?;
        let btf = object.btf()?;
        let definition = object.with_globals([]).ok()?.into_iter().find(|definition| definition.name == map)?;
        let described = |id: u32| (id != 0).then(|| TypeDesc::of(btf, id));
        Some(Said { key: described(definition.key_type), value: described(definition.value_type) })
    }
}

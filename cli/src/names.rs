//! Names beside numbers: what a node calls the interfaces, tasks and cgroups that are in a map.

use std::collections::{BTreeSet, HashMap};

use skep_object::btf::format::Format;
use skep_proto::v1::NameIdsRequest;

use crate::agent::Agent;

/// Numbers that one call takes; of a map with more, those of the first entries are named.
const MOST: usize = 10_000;

/// Numbers, by what they are of.
pub type Ids = BTreeSet<(Kind, u64)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Interface,
    Task,
    Cgroup,
}

impl Kind {
    /// Of a value that is shown so; `None`: it is no number of the node's.
    pub fn of(format: Format) -> Option<Self> {
        match format {
            Format::Interface => Some(Kind::Interface),
            Format::Task => Some(Kind::Task),
            Format::Cgroup => Some(Kind::Cgroup),
            _ => None,
        }
    }
}

/// What a node calls them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Names(HashMap<(Kind, u64), String>);

impl Names {
    /// `17 (nginx)`; of one without a name the number.
    pub fn beside(&self, kind: Kind, id: u64, cell: String) -> String {
        match self.0.get(&(kind, id)) {
            Some(name) => format!("{cell} ({name})"),
            None => cell,
        }
    }
}

/// Asks the node. Who may not know, or asks an agent that cannot tell, sees the numbers.
pub async fn ask(agent: &Agent, ids: &Ids) -> Names {
    if ids.is_empty() {
        return Names::default();
    }
    let of = |kind: Kind| ids.iter().take(MOST).filter(move |(is, _)| *is == kind).map(|(_, id)| *id);
    let short = |kind| of(kind).filter_map(|id| u32::try_from(id).ok()).collect();
    let request = NameIdsRequest {
        interfaces: short(Kind::Interface),
        tasks: short(Kind::Task),
        cgroups: of(Kind::Cgroup).collect(),
    };
    let answer = agent.names(request).await.unwrap_or_default();
    let interfaces = answer.interfaces.into_iter().map(|(id, name)| ((Kind::Interface, id.into()), name));
    let tasks = answer.tasks.into_iter().map(|(id, name)| ((Kind::Task, id.into()), name));
    let cgroups = answer.cgroups.into_iter().map(|(id, name)| ((Kind::Cgroup, id), name));
    Names(interfaces.chain(tasks).chain(cgroups).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_beside_its_number() {
        let names = Names([((Kind::Task, 17), "nginx in default/web-0/server".to_owned())].into());
        assert_eq!(names.beside(Kind::Task, 17, "17".into()), "17 (nginx in default/web-0/server)");
        assert_eq!(names.beside(Kind::Interface, 17, "17".into()), "17");
    }
}

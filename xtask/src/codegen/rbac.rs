//! What each binary may do in the cluster, and why: the chart's roles and their bindings.
//!
//! The rights are data here, so that none is granted without a reason, and a name of the API is written once.

use std::fmt::Write as _;

use skep_crds::{EbpfNode, EbpfProgram, GROUP};

/// Rights on resources of one API group.
struct Rule {
    why: &'static str,
    group: &'static str,
    resources: Vec<String>,
    /// Only objects of these names.
    names: &'static [&'static str],
    verbs: &'static [&'static str],
}

/// Where a role counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Cluster,
    /// The namespace that Skep is installed in.
    Own,
}

/// A role, and whether the ServiceAccount of the same name gets it.
struct Role {
    why: &'static str,
    name: &'static str,
    scope: Scope,
    bound: bool,
    /// More labels than the chart's.
    labels: &'static [(&'static str, &'static str)],
    rules: Vec<Rule>,
}

const NO_NAMES: &[&str] = &[];
/// The Secret of the authority is the operator's alone; this is its public half.
const BUNDLE: &[&str] = &["skep-ca-bundle"];

/// (file in the chart's templates, its value that must be true, roles)
pub fn files() -> Vec<(&'static str, String)> {
    vec![
        ("operator-rbac.yaml", render(&operator(), None)),
        ("agent-rbac.yaml", render(&agent(), None)),
        ("plugin-rbac.yaml", render(&plugin(), Some(".Values.viewer.create"))),
        ("editor-rbac.yaml", render(&editor(), Some(".Values.editor.create"))),
        ("people-rbac.yaml", render(&people(), None)),
    ]
}

fn programs() -> String {
    <EbpfProgram as kube::Resource>::plural(&()).into_owned()
}

fn nodes() -> String {
    <EbpfNode as kube::Resource>::plural(&()).into_owned()
}

fn rule(why: &'static str, group: &'static str, resources: &[&str], verbs: &'static [&'static str]) -> Rule {
    let resources = resources.iter().map(|resource| (*resource).to_owned()).collect();
    Rule { why, group, resources, names: NO_NAMES, verbs }
}

fn of_skep(why: &'static str, resources: Vec<String>, verbs: &'static [&'static str]) -> Rule {
    Rule { why, group: GROUP, resources, names: NO_NAMES, verbs }
}

fn operator() -> Vec<Role> {
    let definitions = "apiextensions.k8s.io";
    vec![
        Role {
            why: "The operator's rights in the cluster. Nothing on nodes: what happens there, agents do.",
            name: "skep-operator",
            scope: Scope::Cluster,
            bound: true,
            labels: &[],
            rules: vec![
                of_skep("What it is for.", vec![programs()], &["get", "list", "watch", "patch"]),
                of_skep("", vec![format!("{}/status", programs()), format!("{}/status", nodes())], &["patch"]),
                of_skep("", vec![nodes()], &["list", "create", "patch", "deletecollection"]),
                rule(
                    "Nodes to choose from; pods, so that agents know which belong to a selector.",
                    "",
                    &["nodes", "pods"],
                    &["list", "watch"],
                ),
                rule("Pull secrets that an EbpfProgram names: by name only, never listed.", "", &["secrets"], &["get"]),
                rule("Who an agent is, when it enrols.", "authentication.k8s.io", &["tokenreviews"], &["create"]),
                rule("What it has to say about a program.", "events.k8s.io", &["events"], &["create", "patch"]),
                rule(
                    "Its own API's definitions, when the chart is upgraded.",
                    definitions,
                    &["customresourcedefinitions"],
                    &["get", "list", "watch", "create"],
                ),
                Rule {
                    names: &["ebpfprograms.skep.dev", "ebpfnodes.skep.dev"],
                    ..rule("", definitions, &["customresourcedefinitions"], &["patch"])
                },
            ],
        },
        Role {
            why: "In its own namespace: the certificate authority, its public half for agents, and the leader's lease.",
            name: "skep-operator",
            scope: Scope::Own,
            bound: true,
            labels: &[],
            rules: vec![
                rule("", "", &["secrets"], &["create"]),
                rule("", "", &["configmaps"], &["create", "patch"]),
                rule("", "coordination.k8s.io", &["leases"], &["get", "create", "update"]),
                Rule { names: &["skep-ca"], ..rule("When the release is deleted.", "", &["secrets"], &["delete"]) },
                Rule { names: BUNDLE, ..rule("", "", &["configmaps"], &["delete"]) },
                Rule {
                    names: &["skep-operator"],
                    ..rule("", "coordination.k8s.io", &["leases"], &["patch", "delete"])
                },
            ],
        },
    ]
}

fn agent() -> Vec<Role> {
    vec![Role {
        why: "The agent's only rights in the cluster: to ask who a caller is, and what they may.",
        name: "skep-agent",
        scope: Scope::Cluster,
        bound: true,
        labels: &[],
        rules: vec![
            rule("", "authentication.k8s.io", &["tokenreviews"], &["create"]),
            rule("", "authorization.k8s.io", &["subjectaccessreviews"], &["create"]),
        ],
    }]
}

fn plugin() -> Vec<Role> {
    vec![
        Role {
            why: "What `kubectl skep` may look at, by a token of the ServiceAccount of the same name.",
            name: "skep-viewer",
            scope: Scope::Cluster,
            bound: false,
            labels: &[],
            rules: vec![of_skep(
                "Virtual resources: agents ask for them by SubjectAccessReview.",
                vec![format!("{}/maps", programs()), format!("{}/events", programs())],
                &["get"],
            )],
        },
        Role {
            why: "Bind it to people who may use `kubectl skep`: to find agents, reach them, and ask for the viewer's token.",
            name: "skep-connect",
            scope: Scope::Own,
            bound: false,
            labels: &[],
            rules: vec![
                rule("", "", &["pods"], &["get", "list"]),
                rule("", "", &["pods/portforward"], &["create", "get"]),
                Rule { names: BUNDLE, ..rule("", "", &["configmaps"], &["get"]) },
                Rule { names: &["skep-viewer"], ..rule("", "", &["serviceaccounts/token"], &["create"]) },
            ],
        },
    ]
}

fn editor() -> Vec<Role> {
    vec![
        Role {
            why: "What `kubectl skep maps set` and `del` may do beside that, by a token of the ServiceAccount of the same name.",
            name: "skep-editor",
            scope: Scope::Cluster,
            bound: false,
            labels: &[],
            rules: vec![of_skep("", vec![format!("{}/maps", programs())], &["get", "update", "delete"])],
        },
        Role {
            why: "Bind it beside skep-connect to people who may write maps: to ask for the editor's token.",
            name: "skep-connect-editor",
            scope: Scope::Own,
            bound: false,
            labels: &[],
            rules: vec![Rule { names: &["skep-editor"], ..rule("", "", &["serviceaccounts/token"], &["create"]) }],
        },
    ]
}

fn people() -> Vec<Role> {
    vec![Role {
        why: "Reading EbpfPrograms and EbpfNodes goes with the view role. Writing them does not go with edit or admin: \
              until an\n# EbpfPolicy says otherwise, who may create an EbpfProgram owns every kernel of the cluster.",
        name: "skep-view",
        scope: Scope::Cluster,
        bound: false,
        labels: &[("rbac.authorization.k8s.io/aggregate-to-view", "true")],
        rules: vec![of_skep("", vec![programs(), nodes()], &["get", "list", "watch"])],
    }]
}

const API: &str = "rbac.authorization.k8s.io";

fn render(roles: &[Role], only_if: Option<&str>) -> String {
    let mut text = "# Generated by `cargo xtask codegen` from xtask/src/codegen/rbac.rs. Do not edit.\n".to_owned();
    if let Some(value) = only_if {
        let _infallible = writeln!(text, "{{{{- if {value} }}}}");
    }
    for role in roles {
        role.render(&mut text);
    }
    if only_if.is_some() {
        text.push_str("{{- end }}\n");
    }
    text
}

impl Role {
    fn render(&self, text: &mut String) {
        let prefix = if self.scope == Scope::Cluster { "Cluster" } else { "" };
        let name = self.name;
        let mut lines = vec!["---".to_owned(), format!("# {}", self.why)];
        lines.extend(self.head(&format!("{prefix}Role")));
        lines.push("rules:".into());
        lines.extend(self.rules.iter().flat_map(Rule::lines));
        if self.bound {
            lines.push("---".into());
            lines.extend(self.head(&format!("{prefix}RoleBinding")));
            lines.push(format!("roleRef: {{apiGroup: {API}, kind: {prefix}Role, name: {name}}}"));
            lines.push("subjects:".into());
            lines.push(format!("- {{kind: ServiceAccount, name: {name}, namespace: {{{{ .Release.Namespace }}}}}}"));
        }
        for line in lines {
            text.push_str(&line);
            text.push('\n');
        }
    }

    fn head(&self, kind: &str) -> Vec<String> {
        let mut lines = vec![
            format!("apiVersion: {API}/v1"),
            format!("kind: {kind}"),
            "metadata:".to_owned(),
            format!("  name: {}", self.name),
        ];
        if self.scope == Scope::Own {
            lines.push("  namespace: {{ .Release.Namespace }}".into());
        }
        lines.push("  labels:".into());
        lines.push("    {{- include \"skep.labels\" . | nindent 4 }}".into());
        lines.extend(self.labels.iter().map(|(label, value)| format!("    {label}: {value:?}")));
        lines
    }
}

impl Rule {
    fn lines(&self) -> Vec<String> {
        let list = |items: &[&str]| format!("[{}]", items.join(", "));
        let resources: Vec<&str> = self.resources.iter().map(String::as_str).collect();
        let group = if self.group.is_empty() { "\"\"" } else { self.group };
        let mut lines = Vec::new();
        if !self.why.is_empty() {
            lines.push(format!("# {}", self.why));
        }
        lines.push(format!("- apiGroups: [{group}]"));
        lines.push(format!("  resources: {}", list(&resources)));
        if !self.names.is_empty() {
            lines.push(format!("  resourceNames: {}", list(self.names)));
        }
        lines.push(format!("  verbs: {}", list(self.verbs)));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two promises of the design on rights.
    #[test]
    fn nobody_lists_secrets_and_the_agent_only_asks() {
        let all = [operator(), agent(), plugin(), people()];
        for rule in all.iter().flatten().flat_map(|role| &role.rules) {
            let secrets = rule.resources.iter().any(|resource| resource == "secrets" || resource == "*");
            let by_name = |verb: &&str| *verb == "delete" && !rule.names.is_empty();
            let all = rule.verbs.iter().all(|verb| ["get", "create"].contains(verb) || by_name(verb));
            assert!(!secrets || all, "{:?}", rule.resources);
            assert!(!rule.verbs.contains(&"*"));
        }
        let agent: Vec<String> =
            agent().into_iter().flat_map(|role| role.rules).flat_map(|rule| rule.resources).collect();
        assert_eq!(agent, ["tokenreviews", "subjectaccessreviews"]);
    }
}

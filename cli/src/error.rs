//! What can go wrong, and what to do then.

use std::path::PathBuf;

/// Every failure of the plugin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("kubeconfig: {0}\nGive one by --kubeconfig, or on a node ask its agent: --socket /run/skep/agent.sock")]
    Kubeconfig(String),
    #[error("{what}: {source}")]
    Kubernetes { what: &'static str, source: Box<kube::Error> },
    #[error(
        "{what}: the API server at {server} does not answer: {problem}\nCheck that the cluster runs, and that its address is right and can be reached from here: kubectl config view --minify; kubectl version"
    )]
    NoAnswer { what: &'static str, server: String, problem: String },
    #[error(
        "{what}: the API server refuses: {message}\nAsk an administrator for that right; `kubectl auth can-i --list` shows those that you have"
    )]
    Forbidden { what: &'static str, message: String },
    #[error(
        "{what}: the API server refuses: {message}\nThe ClusterRole skep-view allows it; an administrator can bind it to you:\n  kubectl create clusterrolebinding skep-view-you --clusterrole=skep-view --user=YOU"
    )]
    MayNotView { what: &'static str, message: String },
    #[error(
        "{what}: the API server refuses: {message}\nThe Role skep-connect in namespace {namespace} allows it; an administrator can bind it to you:\n  kubectl create rolebinding skep-connect-you -n {namespace} --role=skep-connect --user=YOU"
    )]
    MayNotConnect { what: &'static str, message: String, namespace: String },
    #[error(
        "finding the nodes: the API server refuses: {0}\nName one by --node, or let an administrator bind the ClusterRole skep-view to you:\n  kubectl create clusterrolebinding skep-view-you --clusterrole=skep-view --user=YOU"
    )]
    NodesHidden(String),
    #[error("the cluster has no EbpfProgram resource: Skep is not installed in it (helm install skep)")]
    NotInstalled,
    #[error(
        "a host without Kubernetes is changed by its manifests: set spec.suspend, or the annotation skep.dev/restartedAt, in the file"
    )]
    NoChangeBySocket,
    #[error(
        "the API server dropped {0}: its definition of EbpfProgram is older than this plugin; upgrade Skep in the cluster (helm upgrade)"
    )]
    FieldDropped(&'static str),
    #[error("EbpfProgram {0} not found; kubectl skep get -A lists all")]
    NoProgram(String),
    #[error("EbpfProgram {program} cannot be read by this plugin: {problem}; upgrade the plugin")]
    Unreadable { program: String, problem: String },
    #[error("EbpfProgram {program} runs on no node; kubectl skep why {program} says why")]
    NowhereRunning { program: String },
    #[error("several programs are called {0}; give one's namespace by -n")]
    Ambiguous(String),
    #[error(
        "node {node}: no agent of Skep runs there: {hint}\nkubectl get pods -n {namespace} -l app.kubernetes.io/component=agent -o wide shows where they do"
    )]
    NoAgent { node: String, namespace: String, hint: &'static str },
    #[error(
        "ConfigMap skep-ca-bundle in namespace {namespace}: {problem}\nIs Skep installed in another namespace? Give it by --skep-namespace"
    )]
    CaBundle { namespace: String, problem: String },
    #[error("ServiceAccount {name} in namespace {namespace} does not exist; {}give another by --service-account", if name == "skep-editor" { "the chart makes it with editor.create=true, or " } else { "" })]
    NoServiceAccount { name: String, namespace: String },
    #[error("node {node}: the connection to its agent: {problem}")]
    Connection { node: String, problem: String },
    #[error(
        "node {node}: the connection to its agent broke: {problem}\nThe agent may have ended or been restarted: try again"
    )]
    Broken { node: String, problem: String },
    #[error(
        "--node {asked}: the agent at {socket} is that of node {node}\nLeave --node out, or --socket, to ask the cluster for the other node"
    )]
    OtherNode { asked: String, node: String, socket: PathBuf },
    #[error(
        "no socket at {0}: the agent does not run on this host, or has its socket elsewhere (skep-agent run --socket)"
    )]
    NoSocket(PathBuf),
    #[error("{0}: only root may use the agent's socket; try sudo")]
    NotRoot(PathBuf),
    #[error("{path}: nobody listens; does the agent run? ({problem})")]
    DeadSocket { path: PathBuf, problem: String },
    #[error("{0}")]
    Absent(String),
    #[error("{0}")]
    Usage(String),
    #[error(
        "{message}\nThe ServiceAccount needs that right (API group skep.dev) in the program's namespace; --service-account names another"
    )]
    MayNotRead { message: String },
    #[error("the agent answers: {0}")]
    Agent(String),
    #[error("the agent describes the map in a way that is not understood: {0}; is kubectl-skep older than the agent?")]
    Schema(&'static str),
    #[error("{what} took longer than the --request-timeout")]
    Timeout { what: &'static str },
    #[error(
        "node {node}: {what} took longer than the --request-timeout: it still waits in line, {place}\nTry again, or wait longer, as by --request-timeout 5m"
    )]
    StillQueued { what: &'static str, node: String, place: String },
    #[error("the API server minted a token that no header can carry")]
    UnusableToken,
    #[error("{failed} of {of} nodes did not answer")]
    Incomplete { failed: usize, of: usize },
    #[error("{path}: {problem}")]
    Object { path: PathBuf, problem: String },
    #[error("{path}: {problem}")]
    File { path: PathBuf, problem: std::io::Error },
    #[error("{0}")]
    Image(#[from] skep_image::ImageError),
    #[error("nobody reads what is printed any more")]
    ReaderGone,
    #[error("writing: {0}")]
    Output(std::io::Error),
    #[error("the terminal: {0}\n-o json needs none")]
    Terminal(std::io::Error),
}

impl Error {
    /// 3 where what was asked for does not exist, 2 where the command line is wrong, 0 where nobody wants to know, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::NoProgram(_) | Error::NowhereRunning { .. } | Error::NoAgent { .. } | Error::Absent(_) => 3,
            Error::Usage(_) | Error::OtherNode { .. } => 2,
            Error::ReaderGone => 0,
            _ => 1,
        }
    }

    /// What a failed request to the API server at `server` means.
    pub fn kubernetes(what: &'static str, server: &str) -> impl FnOnce(kube::Error) -> Error {
        let server = server.to_owned();
        move |error| match error {
            kube::Error::Api(status) if status.code == 403 => Error::Forbidden { what, message: status.message },
            kube::Error::Api(status)
                if status.code == 404 && status.details.as_ref().is_none_or(|d| d.name.is_empty()) =>
            {
                Error::NotInstalled
            }
            other => unanswered(what, server, other),
        }
    }

    /// The same of EbpfPrograms and EbpfNodes, which one ClusterRole lets people see.
    pub fn viewing(what: &'static str, server: &str) -> impl FnOnce(kube::Error) -> Error {
        let meant = Error::kubernetes(what, server);
        move |error| match meant(error) {
            Error::Forbidden { what, message } => Error::MayNotView { what, message },
            other => other,
        }
    }

    /// The same on the way to an agent, whose rights are in one Role.
    pub fn connecting(what: &'static str, server: &str, namespace: &str) -> impl FnOnce(kube::Error) -> Error {
        let (server, namespace) = (server.to_owned(), namespace.to_owned());
        move |error| match error {
            kube::Error::Api(status) if status.code == 403 => {
                Error::MayNotConnect { what, message: status.message, namespace }
            }
            other => unanswered(what, server, other),
        }
    }
}

/// Of a connection that failed, the layers above say only that it did: the causes are told.
fn unanswered(what: &'static str, server: String, error: kube::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = match &error {
        kube::Error::Service(cause) => Some(cause.as_ref()),
        kube::Error::HyperError(cause) => Some(cause),
        _ => return Error::Kubernetes { what, source: Box::new(error) },
    };
    let mut causes: Vec<String> = Vec::new();
    while let Some(error) = cause {
        causes.push(error.to_string());
        cause = error.source();
    }
    causes.dedup();
    Error::NoAnswer { what, server, problem: causes.join(": ") }
}

impl Error {
    /// What it means that the call to a node's agent failed.
    pub fn call(node: &str, status: tonic::Status) -> Self {
        // What the agent itself answers has no cause here.
        if let Some(problem) = innermost(&status) {
            return Error::Broken { node: node.to_owned(), problem };
        }
        let message = status.message().to_owned();
        match status.code() {
            tonic::Code::NotFound => Error::Absent(message),
            tonic::Code::PermissionDenied | tonic::Code::Unauthenticated => Error::MayNotRead { message },
            // A plugin may be newer than what is installed.
            tonic::Code::Unimplemented => {
                Error::Agent("it does not know this call yet: upgrade Skep's agents to the plugin's version".into())
            }
            code if message.is_empty() => Error::Agent(code.description().to_owned()),
            _ => Error::Agent(message),
        }
    }
}

/// The last cause of an error: the layers above it only say that there is one.
fn innermost(error: &dyn std::error::Error) -> Option<String> {
    std::iter::successors(error.source(), |cause| cause.source()).last().map(ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_broke_is_no_answer() {
        let mut broken = tonic::Status::unknown("h2 protocol error: error reading a body from connection");
        broken.set_source(std::sync::Arc::new(std::io::Error::other("connection reset")));
        let error = Error::call("n1", broken);
        let wanted = "node n1: the connection to its agent broke: connection reset\nThe agent may have ended or been restarted: try again";
        assert_eq!((error.to_string().as_str(), error.exit_code()), (wanted, 1));
        let answered = Error::call("n1", tonic::Status::not_found("no map"));
        assert_eq!((answered.to_string().as_str(), answered.exit_code()), ("no map", 3));
    }
}

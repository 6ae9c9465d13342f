//! placeholder
pub(crate) fn run(
    _: &crate::workspace::Workspace,
    _: &crate::cli::TestArgs,
) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("none")
}

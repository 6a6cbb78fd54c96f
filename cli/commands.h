// The subcommands of `fasa`; each adds itself to the program, and its callback throws fasa::Error.
#pragma once

#include <CLI/CLI.hpp>

namespace fasa::cli {

void add_calibrate_command(CLI::App& app);
void add_inspect_command(CLI::App& app);
void add_run_command(CLI::App& app);
void add_bench_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_serve_command(CLI::App& app);

// Parts of `fasa eval`.
void add_eval_ca_command(CLI::App& eval);
void add_eval_kl_command(CLI::App& eval);
void add_eval_needle_command(CLI::App& eval);
void add_eval_passkey_command(CLI::App& eval);
void add_eval_ruler_command(CLI::App& eval);
void add_eval_recall_command(CLI::App& eval);
void add_eval_longform_command(CLI::App& eval);
void add_eval_tasks_command(CLI::App& eval);
void add_eval_report_command(CLI::App& eval);

}  // namespace fasa::cli

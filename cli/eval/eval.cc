// fasa eval: what sparse attention costs in quality.
#include "cli/commands.h"

namespace fasa::cli {

void add_eval_command(CLI::App& app) {
  CLI::App* eval = app.add_subcommand("eval", "Measure what sparse attention costs in quality");
  eval->require_subcommand(1);
  add_eval_ca_command(*eval);
  add_eval_kl_command(*eval);
  add_eval_needle_command(*eval);
  add_eval_passkey_command(*eval);
  add_eval_ruler_command(*eval);
  add_eval_recall_command(*eval);
  add_eval_longform_command(*eval);
  add_eval_tasks_command(*eval);
  add_eval_report_command(*eval);
  eval->footer(
      "All decode for real, by the policies that give the speed. With --out FILE rows are appended to FILE, and what "
      "is\n"
      "there already is not made again; prefilled states are kept in a cache folder and shared by policies and "
      "budgets.\n"
      "So the way to compare policies is one file of results and a report of it.\n\n"
      "Examples:\n"
      "  fasa eval kl --text other-text.txt --policy fasa,oracle --budget 256,512 --out results.jsonl\n"
      "  fasa eval needle --policy full,fasa --budget 256 --out results.jsonl\n"
      "  fasa eval report results.jsonl -o report.html\n");
}

}  // namespace fasa::cli

// fasa eval: what sparse attention costs in quality.
#include "cli/commands.h"

namespace fasa::cli {

void add_eval_command(CLI::App& app) {
  CLI::App* eval = app.add_subcommand("eval", "Measure what sparse attention costs in quality");
  eval->require_subcommand(1);
  add_eval_kl_command(*eval);
  add_eval_passkey_command(*eval);
  eval->footer(
      "Examples:\n"
      "  fasa eval kl --text other-text.txt --policy fasa,oracle --budget 256,512\n"
      "  fasa eval passkey --context 4096 --trials 10\n");
}

}  // namespace fasa::cli

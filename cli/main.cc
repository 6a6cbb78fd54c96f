// fasa: argv -> library calls.
#include <fmt/format.h>
#include <llama.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>

#include "cli/commands.h"
#include "fasa/error.h"

int main(int argc, char** argv) {
  CLI::App app(
      "FASA: long-context decoding of a GGUF model, many times faster.\n"
      "Calibrate a model once, then run, measure and serve it.",
      "fasa");
  app.set_version_flag("--version", fmt::format("fasa {} (llama.cpp {})", FASA_VERSION, llama_version()));
  app.require_subcommand(1);
  app.footer(
      "Each command teaches itself: `fasa run --help`.\n\n"
      "Examples:\n"
      "  fasa calibrate -m model.gguf --text long-text.txt    once per model\n"
      "  fasa run -m model.gguf                               chat\n"
      "  fasa run --file report.txt -p 'What does it say about X?' --compare\n"
      "  fasa bench --depth 0,4096,8000 --threads 2           is it faster here?\n"
      "  fasa eval kl --text other-text.txt                   what does it cost in quality?\n"
      "  fasa serve -m model.gguf --port 8080                 OpenAI-compatible API\n");
  fasa::cli::add_calibrate_command(app);
  fasa::cli::add_run_command(app);
  fasa::cli::add_bench_command(app);
  fasa::cli::add_inspect_command(app);
  fasa::cli::add_eval_command(app);
  fasa::cli::add_serve_command(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  } catch (const fasa::Error& error) {
    std::fflush(stdout);
    fmt::print(stderr, "fasa: {}\n", error.what());
    return 1;
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "fasa: out of memory: use a shorter context or a smaller model\n");
    return 1;
  } catch (const std::exception& error) {
    fmt::print(stderr, "fasa: {}\n", error.what());
    return 1;
  }
  return 0;
}

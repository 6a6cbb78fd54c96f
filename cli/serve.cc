// fasa serve: llama-server with FASA loaded into it.
#include <fmt/format.h>
#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/engine.h"
#include "cli/options.h"
#include "cli/paths.h"
#include "cli/progress.h"
#include "fasa/error.h"

namespace fasa::cli {
namespace {

struct ServeOptions {
  CommonOptions common;
  std::string host = "127.0.0.1";
  int port = 8080;
  std::vector<std::string> rest;
};

std::string upper(std::string text) {
  for (char& c : text) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return text;
}

void serve(const ServeOptions& options) {
  const PolicySettings settings =
      policy_settings(options.common, options.common.policies.front(), options.common.budgets.front());
  const std::string model = find_model(options.common.model);
  const std::string server = llama_server_path();
  if (settings.kind == PolicyKind::kFull) {
    unsetenv("GGML_BACKEND_PATH");
  } else {
    const std::string profile = find_profile(options.common.profile, model);
    start_llama(options.common.verbose);
    check_profile(profile, Model(model));
    setenv("GGML_BACKEND_PATH", backend_path().c_str(), 1);
    setenv("FASA_PROFILE", profile.c_str(), 1);
    for (const Setting& setting : backend_settings(options.common, settings)) {
      setenv(("FASA_" + upper(setting.key)).c_str(), setting.value.c_str(), 1);
    }
  }
  std::vector<std::string> arguments = {server,
                                        "-m",
                                        model,
                                        "--threads",
                                        std::to_string(num_threads(options.common)),
                                        "--host",
                                        options.host,
                                        "--port",
                                        std::to_string(options.port),
                                        "-fa",
                                        "on"};
  arguments.insert(arguments.end(), options.rest.begin(), options.rest.end());
  say(fmt::format("serving {} with policy {} at http://{}:{}/v1", model, policy_name(settings.kind), options.host,
                  options.port));
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  execv(server.c_str(), argv.data());
  throw Error(ErrorCode::kIo, fmt::format("cannot start {}: {}", server, std::strerror(errno)));
}

}  // namespace

void add_serve_command(CLI::App& app) {
  auto options = std::make_shared<ServeOptions>();
  CLI::App* command = app.add_subcommand("serve", "llama-server with FASA loaded: an OpenAI-compatible API");
  add_common_options(*command, options->common, Arity::kOne, Arity::kOne, "fasa");
  command->add_option("--host", options->host, "Address to listen at")->default_str("127.0.0.1");
  command->add_option("--port", options->port, "Port to listen at")->check(CLI::Range(0, 65535))->default_str("8080");
  command->add_option("arguments", options->rest, "After --: passed to llama-server as they are");
  command->footer(
      "Runs llama.cpp's own llama-server, unmodified; FASA is a library that it loads. Decoding "
      "goes\n"
      "sparse once a conversation is longer than the budget.\n\n"
      "Examples:\n"
      "  fasa serve -m model.gguf --port 8080\n"
      "  fasa serve -m model.gguf --port 8080 -- -c 16384 -np 2    16K tokens, two slots\n"
      "  curl http://127.0.0.1:8080/v1/chat/completions -d\n"
      "    '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'\n");
  command->callback([options] { serve(*options); });
}

}  // namespace fasa::cli

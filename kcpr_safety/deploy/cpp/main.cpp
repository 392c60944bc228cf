// kcpr-robot: what can be done with a bundle from a terminal, a pipe or a test?
//
// Exit codes: 0 done; 2 refused, with one sentence on stderr; 128 + N: `run` was stopped by signal N.
#include "bench.hpp"
#include "bundle.hpp"
#include "controller.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <iostream>

namespace {

constexpr char kHelp[] = R"(usage: kcpr-robot COMMAND BUNDLE --trust PLACE [OPTIONS]

  verify          signature, hashes, contract, golden answers
  run             float32 observations on stdin -> float32 action, float32 risk, int32 mode, int32
                  overruled on stdout, one after another
  ask             float32 observations on stdin -> what --method says to each, as float32
  replay          are the steps in the file --recording repeated bit for bit?
  soak            --steps steps with gradients enabled: does memory stay flat?
  bench           latency, once per control period, as JSON

  --trust PLACE          ID.pub, or a folder of such keys: whose signature counts
  --period S             the robot's control period; another than the policy's is refused
  --observation A,B,...  the robot's names, in its order (not given: the policy's own)
  --action A,B,...       the same for its actuators
  --max-age S            oldest observation that is acted upon (not given: one period)
  --deadline S           longest that a step may take (not given: one period)
  --age S                run: how old each observation is said to be (not given: 0)
  --rehearse N           run: rehearsals before each step; they change no answer (not given: 0)
  --record FILE          run: write the black box there at the end, whichever it is (stdin closed or
                         cut short, SIGINT, SIGTERM, SIGHUP)
  --recording FILE       replay: such a file
  --method NAME          ask: forward, act, nominal, fallback, check (not given: act)
  --steps N              soak: how many (not given: 1000000)
  --ticks N              bench: periods (not given: 1000)
  --bare FILE            bench: also a bare TorchScript network
  --floor FILE           bench: also a library with void floor_act(void), compiled from controller.h

  kcpr-robot verify my-policy --trust policies/trusted --period 0.05
)";

constexpr std::size_t kRecorded = 100'000;

const std::vector<std::string> kMethods = {"forward", "act", "nominal", "fallback", "check"};

using Arguments = std::map<std::string, std::string>;

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> words;
  std::istringstream stream(text);
  for (std::string word; std::getline(stream, word, ',');) words.push_back(word);
  return words;
}

double number(const Arguments& arguments, const std::string& name, double otherwise) {
  const auto found = arguments.find(name);
  if (found == arguments.end()) return otherwise;
  char* end = nullptr;
  const double value = std::strtod(found->second.c_str(), &end);
  if (end == found->second.c_str() || *end != '\0' || !std::isfinite(value) || value < 0)
    throw kcpr::Refusal("--" + name + " takes a number of at least 0, not '" + found->second + "'");
  return value;
}

std::string text(const Arguments& arguments, const std::string& name,
                 const std::string& otherwise = "") {
  const auto found = arguments.find(name);
  return found == arguments.end() ? otherwise : found->second;
}

std::vector<std::string> names(const Arguments& arguments, const std::string& side,
                               const std::vector<kcpr::Entry>& entries) {
  if (arguments.contains(side)) return split(arguments.at(side));
  std::vector<std::string> own;
  for (const auto& entry : entries) own.push_back(entry.name);
  return own;
}

Arguments parse(int count, char** words) {
  static const std::vector<std::string> known = {
      "trust",     "period", "observation", "action", "max-age", "deadline", "age",  "record",
      "recording", "method", "steps",       "ticks",  "bare",    "floor",    "rehearse"};
  Arguments arguments;
  for (int i = 3; i < count; i += 2) {
    const std::string word = words[i];
    const std::string name = word.starts_with("--") ? word.substr(2) : "";
    if (std::find(known.begin(), known.end(), name) == known.end())
      throw kcpr::Refusal("unknown option '" + word + "' (help: kcpr-robot --help)");
    if (i + 1 >= count) throw kcpr::Refusal(word + " needs a value");
    arguments[name] = words[i + 1];
  }
  return arguments;
}

kcpr::Options options(const Arguments& arguments, const kcpr::Contract& contract) {
  kcpr::Options options{.period_s = number(arguments, "period", contract.period_s)};
  options.observation = names(arguments, "observation", contract.observation);
  options.action = names(arguments, "action", contract.action);
  if (arguments.contains("max-age")) options.max_age_s = number(arguments, "max-age", 0);
  if (arguments.contains("deadline")) options.deadline_s = number(arguments, "deadline", 0);
  if (arguments.contains("record")) options.record = kRecorded;
  return options;
}

/// What is missing or unknown can be said before a bundle is opened.
void check(const std::string& what, const Arguments& arguments) {
  if (!arguments.contains("trust"))
    throw kcpr::Refusal("--trust is missing: whose signature counts is never read from a bundle");
  if (what == "replay" && !arguments.contains("recording"))
    throw kcpr::Refusal("replay needs --recording FILE");
  const std::string method = text(arguments, "method", "act");
  if (std::find(kMethods.begin(), kMethods.end(), method) == kMethods.end())
    throw kcpr::Refusal("unknown method '" + method + "' (help: kcpr-robot --help)");
}

volatile std::sig_atomic_t stopped_by = 0;
/// Readable once a signal came, also one that came just before it was asked.
int stop_pipe[] = {-1, -1};

void stop(int number) {
  const int before = errno;
  stopped_by = number;
  [[maybe_unused]] const auto told = write(stop_pipe[1], "", 1);
  errno = before;
}

/// From here on signals end `run` where it waits, and a reader of stdout that has gone is a refusal.
void heed_signals() {
  if (pipe2(stop_pipe, O_NONBLOCK | O_CLOEXEC) != 0) throw kcpr::Refusal("no pipe can be made");
  std::signal(SIGPIPE, SIG_IGN);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction action {};
    sigaction(number, nullptr, &action);
    if (action.sa_handler == SIG_IGN) continue;  // nohup, or in the background of a shell
    action = {};
    action.sa_handler = stop;  // without SA_RESTART: a write that blocks must end, too
    sigaction(number, &action, nullptr);
  }
}

/// The next observation on stdin; false at its end, or when a signal came.
bool read_row(std::vector<float>& row) {
  char* place = reinterpret_cast<char*>(row.data());
  const std::size_t size = row.size() * sizeof(float);
  std::size_t got = 0;
  while (got < size) {
    pollfd ready[] = {{STDIN_FILENO, POLLIN, 0}, {stop_pipe[0], POLLIN, 0}};
    ssize_t more = poll(ready, 2, -1);
    if (stopped_by != 0) return false;
    if (more > 0) more = read(STDIN_FILENO, place + got, size - got);
    if (more < 0 && errno == EINTR) continue;
    if (more < 0) throw kcpr::Refusal("stdin cannot be read");
    if (more == 0) break;
    got += static_cast<std::size_t>(more);
  }
  if (got != 0 && got != size) throw kcpr::Refusal("the last observation is cut short");
  return got != 0;
}

template <typename T>
void put(const T* values, std::size_t count) {
  if (std::fwrite(values, sizeof(T), count, stdout) != count)
    throw kcpr::Refusal("stdout cannot be written");
}

void flush() {
  if (std::fflush(stdout) != 0) throw kcpr::Refusal("stdout cannot be written");
}

void run(kcpr::Controller& controller, const Arguments& arguments) {
  std::vector<float> row(controller.contract().observation.size());
  const double age_s = number(arguments, "age", 0);
  const auto rehearsals = static_cast<std::size_t>(number(arguments, "rehearse", 0));
  const bool recorded = arguments.contains("record");
  if (recorded) kcpr::Recorder::check(arguments.at("record"));
  heed_signals();
  const auto save = [&] {
    if (recorded) controller.save_recording(arguments.at("record"));
  };
  try {
    while (read_row(row)) {
      for (std::size_t i = 0; i < rehearsals; ++i) controller.rehearse();
      const auto& answer = controller.step(row, age_s);
      put(answer.action.data(), answer.action.size());
      put(&answer.risk, 1);
      const std::int32_t bits[] = {static_cast<std::int32_t>(answer.mode),
                                   static_cast<std::int32_t>(answer.overruled)};
      put(bits, 2);
      flush();
    }
  } catch (...) {
    if (stopped_by == 0) {
      save();
      throw;
    }
  }
  save();
}

void ask(kcpr::Controller& controller, const std::string& method) {
  const auto width = static_cast<std::int64_t>(controller.contract().observation.size());
  std::vector<float> row(controller.contract().observation.size());
  while (read_row(row)) {
    const auto obs = torch::from_blob(row.data(), {1, width}).clone();
    const auto answer = controller.ask(method, {obs});
    const auto parts = answer.isTuple() ? answer.toTuple()->elements().vec()
                                        : std::vector<torch::IValue>{answer};
    for (const auto& part : parts) {
      const auto flat = part.toTensor().detach().to(torch::kFloat32).contiguous();
      put(flat.data_ptr<float>(), static_cast<std::size_t>(flat.numel()));
    }
  }
  flush();
}

std::size_t resident_kb() {
  std::ifstream stream("/proc/self/status");
  for (std::string line; std::getline(stream, line);)
    if (line.starts_with("VmRSS:")) return std::stoul(line.substr(6));
  return 0;
}

void soak(const kcpr::Bundle& bundle, kcpr::Options options, std::size_t steps) {
  options.inference = false;
  kcpr::Controller controller(bundle, options);
  torch::AutoGradMode gradients(true);
  std::vector<float> row(controller.contract().observation.size(), 0.0f);
  const std::size_t settle = std::min<std::size_t>(steps / 10, 10'000);
  std::size_t start_kb = 0, overruled = 0;
  for (std::size_t i = 0; i < steps; ++i) {
    if (i == settle) start_kb = resident_kb();
    for (std::size_t j = 0; j < row.size(); ++j)
      row[j] = std::sin(0.001f * static_cast<float>(i % 6283) + static_cast<float>(j));
    overruled += controller.step(row, 0.0).overruled != 0;
  }
  std::cout << nlohmann::json{{"steps", steps},
                              {"start_kb", start_kb},
                              {"end_kb", resident_kb()},
                              {"overruled", overruled}}
            << "\n";
}

/// Each on modules of its own, so that none is warmed up by another.
std::vector<kcpr::Contender> contenders(const kcpr::Bundle& bundle, const kcpr::Options& options,
                                        const Arguments& arguments) {
  const auto obs = torch::zeros({1, static_cast<std::int64_t>(bundle.contract.observation.size())});
  at::set_num_threads(1);
  std::vector<kcpr::Contender> list{{"empty_cpp", [] {}}};
  const auto script = [&](const std::string& name, const std::string& bytes, const char* method) {
    std::istringstream stream(bytes);
    auto module = std::make_shared<torch::jit::Module>(torch::jit::load(stream, c10::kCPU));
    list.push_back({name, [module, obs, call = module->get_method(method)]() mutable {
                      const c10::InferenceMode guard;
                      call({obs});
                    }});
  };
  script("act_torchscript_cpp", bundle.files.at("controller.pt"), "act");
  script("act_rehearsed_cpp", bundle.files.at("controller.pt"), "act");
  list.back().rehearse = list.back().call;
  if (arguments.contains("bare"))
    script("bare_torchscript_cpp", kcpr::read_file(arguments.at("bare")), "forward");
  if (arguments.contains("floor")) {
    void* library = dlopen(arguments.at("floor").c_str(), RTLD_NOW);
    auto* floor = library ? reinterpret_cast<void (*)()>(dlsym(library, "floor_act")) : nullptr;
    if (!floor) throw kcpr::Refusal(arguments.at("floor") + " has no floor_act");
    list.push_back({"act_plain_c", floor});
  }
  const auto step = [&](const std::string& name) {
    auto controller = std::make_shared<std::unique_ptr<kcpr::Controller>>();
    const auto size = static_cast<std::size_t>(obs.numel());
    list.push_back({name,
                    [controller, obs, size] {
                      (*controller)->step({obs.data_ptr<float>(), size}, 0.0);
                    },
                    [controller, bundle, options] {
                      *controller = std::make_unique<kcpr::Controller>(bundle, options);
                    }});
    return controller;
  };
  step("step_cpp");
  const auto controller = step("step_rehearsed_cpp");
  list.back().rehearse = [controller] { (*controller)->rehearse(); };
  return list;
}

void command(const std::string& what, const kcpr::Bundle& bundle, const Arguments& arguments) {
  const kcpr::Options chosen = options(arguments, bundle.contract);
  const auto count = [&](const char* name, double otherwise) {
    return static_cast<std::size_t>(std::max(1.0, number(arguments, name, otherwise)));
  };
  if (what == "soak") {
    soak(bundle, chosen, count("steps", 1e6));
    return;
  }
  if (what == "bench") {
    std::cout << kcpr::bench(contenders(bundle, chosen, arguments), count("ticks", 1000),
                             bundle.contract.period_s)
              << "\n";
    return;
  }
  kcpr::Controller controller(bundle, chosen);
  if (what == "verify") {
    std::cout << bundle.folder.string() << ": signed by '" << bundle.key << "', "
              << bundle.files.size() << " files unchanged, golden answers repeated to "
              << controller.self_test_error() << "\n";
  } else if (what == "run") {
    run(controller, arguments);
  } else if (what == "ask") {
    ask(controller, text(arguments, "method", "act"));
  } else {
    const auto [rows, differ] = controller.replay(arguments.at("recording"));
    if (differ != 0)
      throw kcpr::Refusal(std::to_string(differ) + " of " + std::to_string(rows) +
                          " recorded steps are not repeated bit for bit");
    std::cout << rows << " recorded steps repeated bit for bit\n";
  }
}

}  // namespace

int main(int count, char** words) {
  static const std::vector<std::string> commands = {"verify", "run", "ask", "replay", "soak",
                                                    "bench"};
  const std::string what = count > 1 ? words[1] : "--help";
  if (what == "--help" || what == "-h") {
    std::cout << kHelp;
    return 0;
  }
  try {
    if (std::find(commands.begin(), commands.end(), what) == commands.end())
      throw kcpr::Refusal("unknown command '" + what + "' (help: kcpr-robot --help)");
    if (count < 3) throw kcpr::Refusal(what + " needs a bundle folder");
    const Arguments arguments = parse(count, words);
    check(what, arguments);
    command(what, kcpr::open_bundle(words[2], arguments.at("trust")), arguments);
    // At once: what a reader left unread must not hold it up a second time.
    if (stopped_by != 0) std::_Exit(128 + stopped_by);
    return 0;
  } catch (const std::exception& error) {
    const std::string words = error.what();
    std::cerr << "kcpr-robot: " << words.substr(0, words.find('\n')) << "\n";
    return 2;
  }
}

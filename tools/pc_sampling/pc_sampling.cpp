// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Where the warps of a program's kernels stand, by sampling their program counters (CUPTI) while they run beside each
// other: the persistent kernel, which ends only with the program, too. Loaded into the program by the driver:
//
//   g++ -std=c++17 -O2 -shared -fPIC -I$CUDA/include -I$CUDA/extras/CUPTI/include tools/pc_sampling/pc_sampling.cpp
//       -o libpc_sampling.so -L$CUDA/extras/CUPTI/lib64 -lcupti
//   PC_SAMPLING_OUT=samples.csv CUDA_INJECTION64_PATH=$PWD/libpc_sampling.so warpmail bench wake --idle 1000
//
// A line per place and reason: seconds since the program began, kernel, byte of its code, why a warp stood there,
// samples since the line's predecessor. PC_SAMPLING_PERIOD n: every 2^n cycles (5 to 31, default 10). What fills every
// SM fills the hardware's buffer too, and nothing is sampled from then on; this is said. report.py adds the lines up.
#include <cupti.h>
#include <cupti_pcsampling.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr size_t most_places = 20000;

void check(CUptiResult r, const char* what) {
    if (r == CUPTI_SUCCESS)
        return;
    const char* why = nullptr;
    cuptiGetResultString(r, &why);
    std::fprintf(stderr, "pc_sampling: %s: %s\n", what, why ? why : "?");
}

// Room for the samples of many places.
class buffer {
public:
    explicit buffer(size_t reasons) : places_(most_places), reasons_(most_places * reasons) {
        for (size_t i = 0; i < most_places; i++) {
            places_[i].size = sizeof(CUpti_PCSamplingPCData);
            places_[i].stallReason = &reasons_[i * reasons];
        }
        data.size = sizeof(data);
        data.collectNumPcs = most_places;
        data.pPcData = places_.data();
    }
    CUpti_PCSamplingData data = {};

private:
    std::vector<CUpti_PCSamplingPCData> places_;
    std::vector<CUpti_PCSamplingStallReason> reasons_;
};

class sampler {
public:
    sampler() : begin_(std::chrono::steady_clock::now()) {
        const char* path = std::getenv("PC_SAMPLING_OUT");
        out_ = std::fopen(path ? path : "samples.csv", "w");
        if (out_ == nullptr)
            std::perror("pc_sampling: the output cannot be written");
    }
    // Begins with the program's first context.
    void begin(CUcontext context) {
        const std::lock_guard<std::mutex> guard(mutex_);
        if (context_ != nullptr || out_ == nullptr)
            return;
        CUpti_PCSamplingEnableParams enable = {};
        enable.size = CUpti_PCSamplingEnableParamsSize;
        enable.ctx = context;
        check(cuptiPCSamplingEnable(&enable), "sampling is not enabled");
        learn_reasons(context);
        own_ = new buffer(names_.size());
        taken_ = new buffer(names_.size());
        configure(context);
        context_ = context;
        drain_ = std::thread([this] {
            while (!ended_) {
                std::this_thread::sleep_for(std::chrono::milliseconds(50));
                drain();
            }
        });
    }
    void end() {
        ended_ = true;
        if (drain_.joinable())
            drain_.join();
        drain();
        if (out_ != nullptr)
            std::fclose(out_);
    }

private:
    void learn_reasons(CUcontext context) {
        size_t n = 0;
        CUpti_PCSamplingGetNumStallReasonsParams count = {};
        count.size = CUpti_PCSamplingGetNumStallReasonsParamsSize;
        count.ctx = context;
        count.numStallReasons = &n;
        check(cuptiPCSamplingGetNumStallReasons(&count), "the reasons are not known");
        std::vector<std::vector<char>> text(n, std::vector<char>(CUPTI_STALL_REASON_STRING_SIZE));
        std::vector<char*> at;
        for (auto& t : text)
            at.push_back(t.data());
        index_.resize(n);
        CUpti_PCSamplingGetStallReasonsParams get = {};
        get.size = CUpti_PCSamplingGetStallReasonsParamsSize;
        get.ctx = context;
        get.numStallReasons = n;
        get.stallReasonIndex = index_.data();
        get.stallReasons = at.data();
        check(cuptiPCSamplingGetStallReasons(&get), "the reasons have no names");
        names_.assign(at.begin(), at.end());
    }
    void configure(CUcontext context) {
        const char* period = std::getenv("PC_SAMPLING_PERIOD");
        CUpti_PCSamplingConfigurationInfo c[6] = {};
        c[0].attributeType = CUPTI_PC_SAMPLING_CONFIGURATION_ATTR_TYPE_SAMPLING_PERIOD;
        c[0].attributeData.samplingPeriodData.samplingPeriod = period ? std::atoi(period) : 10;
        c[1].attributeType = CUPTI_PC_SAMPLING_CONFIGURATION_ATTR_TYPE_STALL_REASON;
        c[1].attributeData.stallReasonData.stallReasonCount = index_.size();
        c[1].attributeData.stallReasonData.pStallReasonIndex = index_.data();
        c[2].attributeType = CUPTI_PC_SAMPLING_CONFIGURATION_ATTR_TYPE_COLLECTION_MODE;
        c[2].attributeData.collectionModeData.collectionMode = CUPTI_PC_SAMPLING_COLLECTION_MODE_CONTINUOUS;
        c[3].attributeType = CUPTI_PC_SAMPLING_CONFIGURATION_ATTR_TYPE_SAMPLING_DATA_BUFFER;
        c[3].attributeData.samplingDataBufferData.samplingDataBuffer = &own_->data;
        c[4].attributeType = CUPTI_PC_SAMPLING_CONFIGURATION_ATTR_TYPE_HARDWARE_BUFFER_SIZE;
        c[4].attributeData.hardwareBufferSizeData.hardwareBufferSize = 1024u << 20;
        c[5].attributeType = CUPTI_PC_SAMPLING_CONFIGURATION_ATTR_TYPE_SCRATCH_BUFFER_SIZE;
        c[5].attributeData.scratchBufferSizeData.scratchBufferSize = 64u << 20;
        CUpti_PCSamplingConfigurationInfoParams p = {};
        p.size = CUpti_PCSamplingConfigurationInfoParamsSize;
        p.ctx = context;
        p.numAttributes = 6;
        p.pPCSamplingConfigurationInfo = c;
        check(cuptiPCSamplingSetConfigurationAttribute(&p), "sampling is not configured");
    }
    // Writes what has been sampled so far.
    void drain() {
        const std::lock_guard<std::mutex> guard(mutex_);
        if (context_ == nullptr || lost_)
            return;
        CUpti_PCSamplingGetDataParams get = {};
        get.size = CUpti_PCSamplingGetDataParamsSize;
        get.ctx = context_;
        get.pcSamplingData = &taken_->data;
        do {
            const CUptiResult r = cuptiPCSamplingGetData(&get);
            lost_ = r != CUPTI_SUCCESS || taken_->data.hardwareBufferFull != 0;
            if (lost_ && !ended_)
                check(r, "the hardware's buffer is full, or the samples cannot be read: nothing is sampled any more");
            if (r != CUPTI_SUCCESS)
                return;
            write();
        } while (taken_->data.remainingNumPcs > 0);
        std::fflush(out_);
    }
    void write() {
        const std::chrono::duration<double> now = std::chrono::steady_clock::now() - begin_;
        for (size_t i = 0; i < taken_->data.totalNumPcs; i++) {
            const CUpti_PCSamplingPCData& place = taken_->data.pPcData[i];
            for (size_t k = 0; k < place.stallReasonCount; k++) {
                const CUpti_PCSamplingStallReason& reason = place.stallReason[k];
                const char* name = "?";
                for (size_t n = 0; n < index_.size(); n++)
                    name = index_[n] == reason.pcSamplingStallReasonIndex ? names_[n].c_str() : name;
                if (reason.samples != 0)
                    std::fprintf(out_, "%.3f,%s,%llx,%s,%u\n", now.count(), place.functionName,
                                 static_cast<unsigned long long>(place.pcOffset), name, reason.samples);
            }
        }
    }

    const std::chrono::steady_clock::time_point begin_;
    std::FILE* out_ = nullptr;
    std::mutex mutex_;
    CUcontext context_ = nullptr;
    std::vector<std::string> names_;
    std::vector<uint32_t> index_;
    buffer *own_ = nullptr, *taken_ = nullptr; // CUPTI writes to the first as long as the program lives
    std::thread drain_;
    std::atomic<bool> ended_{false};
    bool lost_ = false;
};

sampler* the_sampler = nullptr;

void CUPTIAPI on_event(void*, CUpti_CallbackDomain, CUpti_CallbackId id, const void* data) {
    if (id == CUPTI_CBID_RESOURCE_CONTEXT_CREATED)
        the_sampler->begin(static_cast<const CUpti_ResourceData*>(data)->context);
}

} // namespace

extern "C" __attribute__((visibility("default"))) int InitializeInjection() {
    the_sampler = new sampler();
    CUpti_SubscriberHandle subscriber = {};
    check(cuptiSubscribe(&subscriber, on_event, nullptr), "CUPTI has another subscriber");
    check(cuptiEnableCallback(1, subscriber, CUPTI_CB_DOMAIN_RESOURCE, CUPTI_CBID_RESOURCE_CONTEXT_CREATED),
          "contexts are not announced");
    std::atexit([] { the_sampler->end(); });
    return 1;
}

// C entry points to sample.cu and finite.cu, float32 only. test_sample_mutants.py compiles it together with a changed
// copy of one of them: -DKERNEL="sample.cu" -DIS_SAMPLE

#include KERNEL

using namespace minillm::cuda;

#ifdef IS_SAMPLE
extern "C" void scratch_bytes(int64_t* bytes, int rows, int ids) { *bytes = sample_scratch_bytes(rows, ids); }

extern "C" void run(const float* logits, const uint64_t* keys, const double* numbers, const int64_t* top_k,
                    const int64_t* seen, const int64_t* seen_end, void* scratch, int64_t* tokens, const bool* finite,
                    int rows, int vocab, int ids) {
  sample({logits, keys, numbers, top_k, seen, seen_end, scratch, tokens, rows, vocab, ids, 0, DType::f32, finite},
         nullptr);
}
#else
extern "C" void run(const float* logits, bool* finite, int rows, int size) {
  finite_rows({logits, finite, rows, size, DType::f32}, nullptr);
}
#endif

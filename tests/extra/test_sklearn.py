from sklearn.utils.estimator_checks import parametrize_with_checks

from mbsim.extra.sklearn import MicroBatchClippingClassifier


@parametrize_with_checks(
    [MicroBatchClippingClassifier(), MicroBatchClippingClassifier(batch_size=6, micro_batch_size=2)]
)
def test_checks(estimator, check):
    check(estimator)
